"""What a test of memory runs in each process: a start from a Hugging Face folder, and how much memory is its own.

Usage: loaded.py OUTPUT CASES, where CASES is a JSON list of mappings with the arguments of `load`, or of `peak`.
"""

import gc
import json
import sys
import threading
import time
from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from lightning import Callback

from tests.strategy import worker
from txtrain.interop import read_folder
from txtrain.model.checkpointing import KeepAll
from txtrain.model.head import Loss
from txtrain.model.lora import LoRA
from txtrain.optim import sgd
from txtrain.run_model import with_trained
from txtrain.schedule import Cosine
from txtrain.strategy import memory, shards
from txtrain.task.causal_lm import CausalLM


def private():
    """Bytes that this process alone has, and has written."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty"))


class Measure(Callback):
    """The loss of each step; private bytes that the model took, at most while it was loaded and when that was done."""

    def setup(self, trainer, task, stage):
        gc.collect()  # of the last case
        memory._give_back()
        self.losses, self.before, self.most, self.loaded = [], private(), 0, threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        while not self.loaded.is_set():
            self.most = max(self.most, private() - self.before)
            time.sleep(0.01)

    def stop(self):
        if not self.loaded.is_set():
            self.loaded.set()
            self.kept = private() - self.before

    def on_train_start(self, trainer, task):
        self.stop()

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.losses.append(task.step_loss())


def understand(folder):
    imported = read_folder(folder)
    parts = {group: instantiate(node, _convert_="all") for group, node in imported.axes.items()}
    return imported, partial(imported.family.model_class, shape=parts.pop("model"), **imported.sizes, **parts)


def load(*, folder, strategy, ranks, lora=None, steps=1):
    """Trains on from the folder, under a strategy."""
    imported, untrained = understand(folder)
    task = CausalLM(
        build_model=with_trained(untrained, imported.path),
        trained=imported.path,
        lora=LoRA(**(lora or {})),
        checkpointing=KeepAll(),
        optimizer=partial(sgd, lr=0.1),
        schedule=Cosine(),
        loss=Loss(),
    )
    measure = Measure()
    if strategy.startswith("deepspeed"):
        import deepspeed  # noqa: F401  # before memory is measured

        cut = shards.cut

        def cut_and_stop(*arguments):
            cut(*arguments)
            measure.stop()  # before the engine makes what it needs besides

        shards.cut = cut_and_stop
    trainer, loader = worker.new_trainer(strategy=strategy, ranks=ranks, callbacks=[measure], max_steps=steps)
    trainer.fit(task, train_dataloaders=loader, val_dataloaders=loader)
    mine = {"kept": measure.kept, "most": measure.most, "sha256": (task.base or {}).get("sha256")}
    shares = [mine]
    if ranks > 1:
        shares *= ranks
        torch.distributed.all_gather_object(shares, mine)
    return {"losses": measure.losses, "processes": shares}


def peak(*, folder, ranks):
    """Bytes by which reading the folder raises the most that this process ever had; to be called first."""
    imported, untrained = understand(folder)
    before = of_process("VmRSS")
    model = with_trained(untrained, imported.path)()
    assert not any(weight.is_meta for weight in model.parameters())
    return of_process("VmHWM") - before


def of_process(key):
    """Bytes that this process has (VmRSS), or had at most (VmHWM); those of files that it maps count too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key))


if __name__ == "__main__":
    worker.main(sys.argv[1], json.loads(sys.argv[2]), {"fit": load, "peak": peak})
