"""The end of a run's processes, as it should be whether the run ended well or not."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from lightning import Trainer

# What a process may take to end by itself, in seconds. One that waits for another in a collective does not.
PATIENCE = 10.0


@contextmanager
def ending_processes(trainer: Trainer) -> Iterator[None]:
    """Around all that a trainer does: leaves no process, process group or environment variable of it behind.

    If this process fails, those that Lightning started for the other devices are ended. If one of them does, this one
    fails too when it next communicates, but waits until the other has told its error. Those that torchrun or SLURM
    started are ended by them.
    """
    environment = dict(os.environ)
    try:
        yield
        if dist.is_initialized():
            dist.barrier()  # the first process is where the others meet, so none leaves before all are done
    except BaseException:
        _leave(environment)
        for child in _children(trainer):
            _end(child)
        raise
    _leave(environment)
    for rank, child in enumerate(_children(trainer), start=1):
        if code := child.wait():
            raise RuntimeError(f"The process of device {rank} ended with code {code}")


def _children(trainer: Trainer) -> list[subprocess.Popen[bytes]]:
    """The processes that Lightning started; it no longer watches them, which is by killing this one if one fails."""
    processes = getattr(trainer.strategy.launcher, "procs", [])
    children = processes[:]
    processes.clear()
    return children


def _end(child: subprocess.Popen[bytes]) -> None:
    for signal in (child.terminate, child.kill):
        try:
            child.wait(PATIENCE)
            return
        except subprocess.TimeoutExpired:
            signal()
    child.wait()


def _leave(environment: dict[str, str]) -> None:
    """Ends the process group, and forgets LOCAL_RANK and the like, by which a next run would think itself a child."""
    if dist.is_initialized():
        dist.destroy_process_group()
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
