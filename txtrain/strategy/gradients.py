"""The norm of all gradients, whether they are finite, clipping them, and leaving them out."""

from typing import Any

import torch.distributed as dist
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from txtrain.model.finite import first_not_finite, is_finite
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


def gradients_overflow(task: LightningModule) -> bool | None:
    """Whether an engine that clips within its own step has gradients that are not finite, on any device.

    None under other strategies, whose norm of gradients says it. Every rank must call it, before the step.
    """
    strategy = task.trainer.strategy
    return bool(strategy.deepspeed_engine.optimizer.has_overflow()) if isinstance(strategy, DeepSpeed) else None


def step_was_left_out(task: LightningModule) -> bool:
    """Whether the engine has left out the latest optimizer step, as DeepSpeed does where gradients overflow."""
    strategy = task.trainer.strategy
    return isinstance(strategy, DeepSpeed) and bool(strategy.deepspeed_engine.optimizer.overflow)


def drop_step(task: Any, optimizer: Any) -> None:
    """Ends an optimizer step without taking it: weights and optimizer state stay as they are, gradients are let go."""
    strategy, scheduler = task.trainer.strategy, task.lr_schedulers()
    scheduler.optimizer._opt_called = True  # the schedule moves on past this step, of which PyTorch would warn
    if not isinstance(strategy, DeepSpeed):
        optimizer.zero_grad()
        return
    zero = strategy.deepspeed_engine.optimizer

    # DeepSpeed's ZeRO optimizers call this between the norm and the step, and leave out a step that overflows.
    def overflow(has_overflow: bool) -> None:
        zero.overflow = True

    zero._update_scale = overflow
    try:
        strategy.deepspeed_engine.step()
    finally:
        del zero._update_scale


def weight_not_finite(task: Any) -> str | None:
    """The name of a weight with NaN or infinity on any device, None if there is none; every rank must call it."""
    found = first_not_finite((name, _held(parameter)) for name, parameter in task.model.named_parameters())
    return _agreed(task, found) if _any(task, found is not None) else None


def not_finite(task: Any) -> tuple[str, str] | None:
    """Which of a run's weights or moments has NaN or infinity on any device: its kind, and its name.

    None if there is none; every rank must call it.
    """
    if weight := weight_not_finite(task):
        return "weights", weight
    strategy = task.trainer.strategy
    held = (("", tensor) for tensor in strategy.held_moments())
    if not _any(task, first_not_finite(held) is not None):
        return None
    names = [
        f"{key} of {name}"
        for name, parameter in strategy.trained().items()
        for key, moment in strategy.whole_moments(parameter)
        if not is_finite(moment)
    ]
    found = _agreed(task, names[0] if names else None)
    return ("moments", found) if found else None  # else it is in what fills up a shard, and belongs to no weight


def _any(task: Any, here: bool) -> bool:
    """Whether something holds on any device."""
    return not task.trainer.strategy.reduce_boolean_decision(not here)


def _agreed(task: Any, name: str | None) -> str | None:
    """The first name that any process has found, the same on all of them."""
    names = [name]
    if task.trainer.world_size > 1:
        names *= task.trainer.world_size
        dist.all_gather_object(names, name)
    return next((found for found in names if found is not None), None)


def _held(parameter: nn.Parameter) -> Tensor:
    """What this process holds of a weight."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
