"""Stochastic gradient descent."""

import torch
from torch import nn

from txtrain.optim.groups import check_settings, decay_groups, trainable, with_rates


def sgd(
    model: nn.Module, *, lr: float = 0.1, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0
) -> torch.optim.SGD:
    """Steps along the average gradient (https://proceedings.mlr.press/v28/sutskever13.html).

    Args:
        model: what to train.
        lr: learning rate that the schedule scales.
        momentum: how slowly the average of the gradient changes; 0 is the gradient itself.
        nesterov: whether the average looks one step ahead.
        weight_decay: multiple of a matrix added to its gradient.
    """
    check_settings(lr=lr, momentum=momentum, weight_decay=weight_decay)
    if momentum >= 1 or (nesterov and momentum == 0):
        raise ValueError(
            f"optimizer.momentum is {momentum}: give a number below 1, and above 0 with optimizer.nesterov=true, "
            "such as optimizer.momentum=0.9"
        )
    groups = with_rates(model, decay_groups(model, trainable(model), weight_decay), lr)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)
