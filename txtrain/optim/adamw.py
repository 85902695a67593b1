"""Adam with decoupled weight decay."""

import torch
from torch import nn

from txtrain.optim.groups import check_settings, decay_groups, fused, trainable, with_rates


def adamw(
    model: nn.Module,
    *,
    lr: float = 1e-3,
    betas: list[float] | tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> torch.optim.AdamW:
    """AdamW (https://arxiv.org/abs/1711.05101), in one fused kernel on CPUs and GPUs alike.

    Args:
        model: what to train.
        lr: learning rate that the schedule scales.
        betas: how slowly the averages of the gradient and of its square change.
        eps: added to the root of the second average.
        weight_decay: share of a matrix, times the learning rate, taken off at each step.
    """
    pair = check_settings(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    parameters = trainable(model)
    groups = with_rates(model, decay_groups(model, parameters, weight_decay), lr)
    return torch.optim.AdamW(groups, lr=lr, betas=pair, eps=eps, fused=fused(parameters))
