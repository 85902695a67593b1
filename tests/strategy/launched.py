"""A run whose other process Lightning starts, twice in a row, or with a failure in one of the processes.

Usage: launched.py OUTPUT STRATEGY [RANK THAT FAILS]
"""

import os
import sys

import torch
from lightning import Callback
from worker import new_task, new_trainer

from txtrain.strategy import ending_processes


class Fail(Callback):
    def __init__(self, rank):
        self.rank = rank

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if batch_idx == 2 and trainer.global_rank == self.rank:
            raise RuntimeError(f"rank {self.rank} fails on purpose")


def run(strategy, callbacks):
    trainer, loader = new_trainer(strategy=strategy, ranks=2, callbacks=callbacks)
    before = dict(os.environ)
    with ending_processes(trainer):
        trainer.fit(new_task("sgd", {"lr": 0.1}), train_dataloaders=loader, val_dataloaders=loader)
        world_size = trainer.world_size
    assert not torch.distributed.is_initialized()
    assert dict(os.environ) == before
    if "LOCAL_RANK" in before:  # a child's run is over; the parent's second run starts a new one
        sys.exit()
    return world_size


if __name__ == "__main__":
    output, strategy, *failing = sys.argv[1:]
    failures = [Fail(int(rank)) for rank in failing]
    with open(output, "a") as file:
        print(os.getpid(), file=file)
    sizes = [run(strategy, failures) for _ in range(2)]
    with open(output, "a") as file:
        print("world sizes", *sizes, file=file)
