"""The norm of all gradients, and clipping by it."""

from lightning import LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from txtrain.strategy.zero import DeepSpeed


def clip_gradients(task: LightningModule, max_norm: float | None) -> Tensor | None:
    """Scales all gradients down to a norm of at most `max_norm`; returns the norm that they had, over all shards.

    None under DeepSpeed, which clips within its own step and sets `task.grad_norm` after it.
    """
    if isinstance(task.trainer.strategy, DeepSpeed):
        return None
    parameters = [parameter for parameter in task.parameters() if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if max_norm:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
