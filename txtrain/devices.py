"""The devices of this machine, and which of them a run asks for.

PyTorch is imported where a GPU may be meant: it takes seconds, which a sweep on CPUs need not wait for.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from txtrain.errors import UserError

if TYPE_CHECKING:
    import torch

# More processes than this on a core only wait for each other, so a larger number is taken for a mistake.
PROCESSES_PER_CORE = 2


def accelerator_kind(accelerator: str) -> str:
    """cpu, cuda or mps, for what `trainer.accelerator` says."""
    if accelerator == "cpu":
        return "cpu"
    import torch

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


def devices_here(kind: str) -> int:
    """How many devices of a kind this machine has: GPUs, or processes that its CPU cores are good for."""
    if kind != "cuda":
        return PROCESSES_PER_CORE * cores() if kind == "cpu" else 1
    import torch

    return torch.cuda.device_count()


def count_devices(kind: str, devices: int | str | Sequence[int]) -> int:
    """How many devices of a kind `trainer.devices` asks for on this machine: a number, a list of them, or auto."""
    most = devices_here(kind)
    if devices == "auto" or (devices in ("-1", -1) and kind != "cpu"):
        return 1 if kind == "cpu" else most
    try:
        numbers = device_numbers(devices)
        count, highest = (len(numbers), max(numbers)) if numbers else (int(str(devices)), int(str(devices)) - 1)
    except ValueError:
        raise UserError(f"trainer.devices is {devices}: type a number, such as trainer.devices=2, or auto") from None
    if kind == "cpu" and (numbers or count == -1):
        raise UserError(
            f"trainer.devices={devices} means GPUs, and this run is on a CPU, where a device is a process: type how "
            "many, such as trainer.devices=1"
        )
    if count < 1 or min(numbers, default=0) < 0:
        raise UserError(f"trainer.devices is {devices}: type at least trainer.devices=1")
    if highest >= most:
        there = f"{most // PROCESSES_PER_CORE} CPU cores, each good for {PROCESSES_PER_CORE} processes,"
        raise UserError(
            f"trainer.devices={devices} is more than the {f'{most} GPUs' if kind != 'cpu' else there} here: "
            f"type trainer.devices={most} or fewer"
        )
    return count


def device_numbers(devices: int | str | Sequence[int]) -> list[int]:
    """The devices that `trainer.devices` names; empty if it says only how many."""
    if isinstance(devices, str):
        return [int(part) for part in devices.split(",")] if "," in devices else []
    return [] if isinstance(devices, int) else list(devices)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory that this process may take: the machine's, or less in a container or a job with a limit.

    Args:
        root: of the file system.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([there, *_memory_limits(root)])


def _memory_limits(root: Path) -> Iterator[int]:
    """Those of this process's control groups and of all above them, of version 2 or 1
    (https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html).
    """
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        # A container may see the name that its group has outside, while the mount in it begins at the group.
        own = PurePosixPath("" if ".." in group else group.lstrip("/"))
        for level in (own, *own.parents):
            if not controllers:
                files = [mounts / level / "memory.max", mounts / "unified" / level / "memory.max"]
            elif "memory" in controllers.split(","):
                files = [mounts / "memory" / level / "memory.limit_in_bytes"]
            else:
                files = []
            yield from (int(text) for text in map(_text, files) if text.strip().isdigit())


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def find_device(name: str) -> "torch.device":
    """The device that `--device` names, if it is here; auto is a GPU if there is one."""
    import torch

    available = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        name = next(kind for kind, count in available.items() if count)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is unknown: give cpu, cuda, cuda:1 or mps") from None
    if (device.index or 0) >= available.get(device.type, 0):
        raise UserError(f"--device {name} is not here: give --device cpu")
    return device
