"""The end of a run's processes, as it should be whether the run ended well or not."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from lightning import Trainer

# What a process may take to end by itself, in seconds.
PATIENCE = 10.0


@contextmanager
def ending_processes(trainer: Trainer) -> Iterator[None]:
    """Around all that a trainer does: leaves no process, process group or environment variable of it behind.

    If this process fails, those that Lightning started for the other devices are ended, since they may wait for it in a
    collective. Those that torchrun or SLURM started are ended by them.
    """
    environment = dict(os.environ)
    try:
        yield
        if dist.is_initialized():
            dist.barrier()  # the first process is the one that the others meet at: it leaves last
    except BaseException:
        for child in _children(trainer):
            child.terminate()
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        for child in _children(trainer):
            _end(child)
        _restore(environment)


def _children(trainer: Trainer) -> list[subprocess.Popen[bytes]]:
    return getattr(trainer.strategy.launcher, "procs", [])


def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _restore(environment: dict[str, str]) -> None:
    """Lightning leaves LOCAL_RANK and the like, by which a next run would take itself for a child."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
