"""ReLoRA: adapters are merged into the weights under them and start anew, so that many small changes add up."""

import logging
from random import Random
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from txtrain.callbacks.steps import new_step
from txtrain.logger import LOG_ONLY
from txtrain.model.lora import adapters

log = logging.getLogger(__name__)


class Merging(Callback):
    """Every `lora.merge_every` steps: W becomes W + s · B A, A is drawn anew, B is zero, and so are their moments
    (https://arxiv.org/abs/2307.05695).

    What is drawn follows from the seed and the step alone, so all ranks and a resumed run draw the same.
    """

    def __init__(self) -> None:
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not new_step(trainer, self._step):
            return
        self._step = trainer.global_step
        lora: Any = pl_module.lora
        if lora.rank and lora.merge_every and self._step % lora.merge_every == 0:
            merge_and_restart(trainer.strategy, pl_module.model, seed=f"{pl_module.seed} {self._step}")
            log.info("Adapters merged into their weights at step %d", self._step, extra=LOG_ONLY)


@torch.no_grad()
def merge_and_restart(strategy: Any, model: Any, *, seed: str) -> None:
    """Merges all adapters of a model that a strategy holds, whole or in shards."""
    generator = torch.Generator().manual_seed(Random(seed).getrandbits(63))
    for _, layer in adapters(model):
        weight, low, high = (strategy.whole_weight(p) for p in (layer.weight, layer.lora_A, layer.lora_B))
        change = layer.change(low, high)
        strategy.set_weight(layer.weight, (weight.to(change.dtype) + change).to(weight.dtype))
        low, high = (torch.empty(whole.shape, dtype=whole.dtype) for whole in (low, high))
        layer.draw(low, high, generator)
        strategy.set_weight(layer.lora_A, low)
        strategy.set_weight(layer.lora_B, high)
        strategy.forget_moments((layer.lora_A, layer.lora_B))
