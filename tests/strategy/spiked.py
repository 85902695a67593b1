"""What a test of loss spikes runs in each process: small fits with one sample whose loss is not what it should be.

Usage: spiked.py OUTPUT CASES, where CASES is a JSON list of mappings with the arguments of `fit`.
"""

import json
import math
import sys

from lightning import Callback, LightningDataModule

from tests.strategy.worker import BATCH, SAMPLES, main, new_task, new_trainer, whole
from txtrain.callbacks import spikes
from txtrain.data.order import Shuffled, samples_of_step

ORDER = Shuffled(size=SAMPLES, batch_size=BATCH, seed=0)
POISON = int(samples_of_step(ORDER, 3).samples[-1])


def is_poisoned(step):
    return POISON in samples_of_step(ORDER, step).samples


def poison(task, factor):
    """Makes all losses `factor` times as large in a batch that has the sample; None spoils only the gradients."""
    losses = task.losses

    def poisoned(batch):
        objective, entropy = losses(batch)
        poisoned = (batch["index"] == POISON).any()
        if factor is None:
            if poisoned and objective.requires_grad:
                objective.register_hook(lambda gradient: gradient * math.nan)
            return objective, entropy
        scale = factor if poisoned else 1.0
        return objective * scale, entropy * scale

    task.losses = poisoned


class Samples(LightningDataModule):
    """A loader, with names for samples by which a spike is told."""

    def __init__(self, loader):
        super().__init__()
        self.train_dataloader = self.val_dataloader = lambda: loader

    def locate(self, sample):
        return None, sample


class Weights(Callback):
    """Whole, before the first step and after each."""

    def __init__(self):
        self.after = []

    def on_train_start(self, trainer, task):
        self._keep(task)

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._keep(task)

    def _keep(self, task):
        self.after.append({name: whole(parameter) for name, parameter in task.model.named_parameters()})


def fit(*, optimizer, arguments, factor, clip, on_spike="skip", **options):
    """Trains a few steps and returns the weights after each and the steps that were left out."""
    spikes.ENOUGH, spikes.DEVIATIONS = 2, 100.0  # a window for few steps
    weights, guard = Weights(), spikes.Spikes(run_dir="run", on_spike=on_spike)
    trainer, loader = new_trainer(callbacks=[guard, weights], gradient_clip_val=clip, **options)
    task = new_task(optimizer, arguments)
    poison(task, None if factor is None else float(factor))
    trainer.fit(task, datamodule=Samples(loader))
    found = {"weights": weights.after, "skipped_steps": guard.skipped_steps, "stopped": guard.stopped}
    return found | {"steps": trainer.global_step}


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), {"fit": fit})
