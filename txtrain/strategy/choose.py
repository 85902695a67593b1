"""What is told before anything is read: whether the devices exist, and whether the optimizer fits the strategy."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy

from txtrain.errors import UserError
from txtrain.strategy.ddp import DDP
from txtrain.strategy.one import OneDevice

# More processes than this on a core only wait for each other, so a larger number is taken for a mistake.
PROCESSES_PER_CORE = 2


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
    return DDP() if count * num_nodes > 1 else OneDevice(device=torch.device(kind, first_device(devices)))


def check_optimizer(new_optimizer: Callable[..., Any], strategy: Strategy) -> None:
    """Refuses an optimizer of whole matrices where the strategy gives it shards that are none."""
    target = new_optimizer.func if isinstance(new_optimizer, partial) else new_optimizer
    if getattr(target, "needs_whole_matrices", False) and getattr(strategy, "flattens_parameters", False):
        raise UserError(
            f"optimizer={target.__name__.lower()} needs whole weight matrices, and ZeRO cuts them into flat pieces: "
            "type strategy=ddp or strategy=fsdp"
        )


def accelerator_kind(accelerator: str) -> str:
    """cpu, cuda or mps, for what `trainer.accelerator` says."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        return next(kind for kind, is_there in available.items() if is_there)
    if accelerator == "gpu":
        accelerator = "mps" if available["mps"] else "cuda"
    if accelerator not in available:
        raise UserError(f"trainer.accelerator is {accelerator}: type trainer.accelerator=auto, cpu or gpu")
    if not available[accelerator]:
        raise UserError(f"trainer.accelerator={accelerator} finds no such device here: type trainer.accelerator=cpu")
    return accelerator


def count_devices(kind: str, devices: int | str | Sequence[int]) -> int:
    """How many devices of a kind `trainer.devices` asks for on this machine: a number, a list of them, or auto."""
    most = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, PROCESSES_PER_CORE * _cores())
    if devices in ("auto", "-1", -1):
        return 1 if kind == "cpu" else most
    try:
        if isinstance(devices, str):
            devices = [int(part) for part in devices.split(",")] if "," in devices else int(devices)
        count, highest = (devices, devices - 1) if isinstance(devices, int) else (len(devices), max(devices))
    except ValueError:
        raise UserError(f"trainer.devices is {devices}: type a number, such as trainer.devices=2, or auto") from None
    if count < 1:
        raise UserError(f"trainer.devices is {devices}: type at least trainer.devices=1")
    if highest >= most:
        there = f"{most // PROCESSES_PER_CORE} CPU cores, each good for {PROCESSES_PER_CORE} processes,"
        raise UserError(
            f"trainer.devices={devices} is more than the {f'{most} GPUs' if kind != 'cpu' else there} here: "
            f"type trainer.devices={most} or fewer"
        )
    return count


def first_device(devices: int | str | Sequence[int]) -> int:
    """Number of the first device that `trainer.devices` names, 0 if it says only how many."""
    if isinstance(devices, str) and "," in devices:
        devices = [int(part) for part in devices.split(",")]
    return 0 if isinstance(devices, int | str) else devices[0]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
