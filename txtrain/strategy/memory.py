"""One copy of a model for all processes of a machine: the first of them makes it, the others map its memory.

A strategy that cuts weights up, or moves them to a device, needs whole ones for a moment only. Were each process to
make them, a machine of eight GPUs would need eight models of memory first.
"""

import ctypes
import logging
import mmap
import os
from collections.abc import Callable, Iterator
from itertools import accumulate

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import Strategy
from torch import nn

from txtrain.model.block import Block

ALIGNMENT = 64  # bytes; a vector register is no wider

log = logging.getLogger(__name__)


def made_once(strategy: Strategy, make: Callable[[torch.device], nn.Module]) -> nn.Module:
    """The model that `make` makes, on the CPU; every process must call it.

    Where several processes on a machine let go of whole weights soon, the first of them makes the model, and moves it,
    block by block, into memory without a name, which is gone with the last process that has it. The others make it
    without memory (device meta), and map that of the first. What a process writes into a weight is its own.

    Args:
        strategy: whose processes are connected already.
        make: makes the model on a device. Its weights are all that it has of tensors.
    """
    cuts_weights, on_cpu = getattr(strategy, "cuts_weights", False), strategy.root_device.type == "cpu"
    alone = getattr(strategy, "num_processes", 1) == 1
    if alone or (on_cpu and not cuts_weights) or not hasattr(os, "memfd_create"):
        return make(torch.device("cpu"))
    model = make(torch.device("cpu" if strategy.local_rank == 0 else "meta"))
    assert not any(True for _ in model.buffers()), "a tensor that is no parameter has no memory here"
    if strategy.local_rank == 0:
        memory = os.memfd_create("txtrain")
        _move(model, memory)
        _exchange(_address(memory))
        strategy.barrier()  # until the others have opened it
        os.close(memory)
        return model
    address = _exchange(None)[strategy.global_rank - strategy.local_rank]
    opened = _open(address)
    strategy.barrier()
    if opened is None:
        log.warning("The memory of process %d cannot be mapped (another container?): a copy is made", address[0])
        return make(torch.device("cpu"))
    for start, unit in _layout(model):
        _map(opened, start, unit)
    os.close(opened)
    return model


def _exchange(address: tuple[int, ...] | None) -> list[tuple[int, ...]]:
    """What every process has said, by rank."""
    addresses = [address] * dist.get_world_size()
    dist.all_gather_object(addresses, address)
    return addresses  # type: ignore[return-value]  # each machine's first process has said one


def _address(memory: int) -> tuple[int, ...]:
    """Process, file descriptor, and what no other file has."""
    status = os.fstat(memory)
    return os.getpid(), memory, status.st_dev, status.st_ino, status.st_size


def _open(address: tuple[int, ...]) -> int | None:
    """The memory of another process of this user; None where that process cannot be seen."""
    process, number, *same = address
    try:
        memory = os.open(f"/proc/{process}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    status = os.fstat(memory)
    if [status.st_dev, status.st_ino, status.st_size] == same:
        return memory
    os.close(memory)  # of a process that has this number elsewhere
    return None


def _layout(model: nn.Module) -> Iterator[tuple[int, list[nn.Parameter]]]:
    """Where each block's parameters begin, and then those that are in none."""
    start, seen = 0, set[nn.Parameter]()
    for module in (*(module for module in model.modules() if isinstance(module, Block)), model):
        if unit := [parameter for parameter in module.parameters() if parameter not in seen]:
            yield start, unit
            seen.update(unit)
            start += _round_up(sum(_room(unit)), mmap.ALLOCATIONGRANULARITY)


def _room(unit: list[nn.Parameter]) -> list[int]:
    return [_round_up(parameter.nbytes, ALIGNMENT) for parameter in unit]


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def _move(model: nn.Module, memory: int) -> None:
    """Fills the memory with a model's weights, whose own memory is given back as this goes on."""
    with open(memory, "r+b", closefd=False) as file:
        for start, unit in _layout(model):
            for parameter, place in zip(unit, accumulate(_room(unit), initial=start), strict=False):
                file.seek(place)
                file.write(parameter.detach().contiguous().flatten().view(torch.uint8).numpy().data)
            file.truncate(start + _round_up(sum(_room(unit)), mmap.ALLOCATIONGRANULARITY))
            _map(memory, start, unit)
            _give_back()


def _give_back() -> None:
    """Has the C library return what was freed; of tensors below 32 MB glibc may keep it, a model's worth at last."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _map(memory: int, start: int, unit: list[nn.Parameter]) -> None:
    """Gives a block's parameters the values in the memory; one mapping for all, since each takes a file descriptor."""
    room = _room(unit)
    mapped = mmap.mmap(memory, sum(room), access=mmap.ACCESS_COPY, offset=start)
    for parameter, place in zip(unit, accumulate(room, initial=0), strict=False):
        value = torch.frombuffer(mapped, dtype=parameter.dtype, count=parameter.numel(), offset=place)
        mine = nn.Parameter(value.view(parameter.shape), requires_grad=parameter.requires_grad)
        torch.utils.swap_tensors(parameter, mine)  # so that whoever shares the weight still does
