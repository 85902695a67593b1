"""What is told before anything is read: whether the devices exist, and whether the optimizer fits the strategy."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy

from txtrain.devices import accelerator_kind, count_devices, device_numbers
from txtrain.errors import UserError
from txtrain.strategy.ddp import DDP
from txtrain.strategy.one import OneDevice


def auto() -> str:
    """One device: no communication. Several: DDP."""
    return "auto"


def choose_strategy(
    new_strategy: Callable[[], Strategy | str],
    *,
    accelerator: str = "auto",
    devices: int | str | Sequence[int] = "auto",
    num_nodes: int = 1,
) -> Strategy:
    """The strategy for these devices.

    Args:
        new_strategy: makes the strategy; `auto` leaves the choice to the number of devices.
        accelerator, devices, num_nodes: as in Lightning's Trainer.

    Raises:
        UserError: there are fewer devices, or the strategy does not run here.
    """
    kind = accelerator_kind(accelerator)
    count = count_devices(kind, devices)
    if kind == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported, which else prefers a GPU
    strategy = new_strategy()
    if strategy != "auto":
        return strategy
    if count * num_nodes > 1:
        return DDP()
    return OneDevice(device=torch.device(kind, (device_numbers(devices) or [0])[0]))


def check_optimizer(new_optimizer: Callable[..., Any], strategy: Strategy) -> None:
    """Refuses an optimizer of whole matrices where the strategy gives it shards that are none."""
    target = new_optimizer.func if isinstance(new_optimizer, partial) else new_optimizer
    if getattr(target, "needs_whole_matrices", False) and getattr(strategy, "flattens_parameters", False):
        raise UserError(
            f"optimizer={target.__name__.lower()} needs whole weight matrices, and ZeRO cuts them into flat pieces: "
            "type strategy=ddp or strategy=fsdp"
        )
