"""What an evaluation counts beside the loss: right guesses, and the loss at each length of context."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from txtrain.model.head import IGNORED, Loss, widest_float


class Meter(Callback):
    """Stands where a task has its loss, since all that is to be counted passes there, and adds up over all ranks.

    Args:
        length: tokens T in a window.

    Attributes:
        correct: targets that the model found most likely.
        entropy, targets: (T,) sum of cross-entropies, and how many, of the targets with t + 1 tokens of context.
    """

    def __init__(self, *, length: int) -> None:
        self.length = length

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = pl_module.device
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.entropy = torch.zeros(self.length, dtype=widest_float(device), device=device)
        self.targets = torch.zeros(self.length, dtype=torch.int64, device=device)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        columns = torch.arange(self.length, device=pl_module.device)
        self._positions = batch.get("positions", columns).expand_as(batch["targets"])

    def __call__(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `txtrain.model.head.Loss` does: logits (B, T, V), targets (B, T) → two sums of cross-entropies."""
        valid = targets != IGNORED
        _, entropy = Loss().of_each(logits, targets)
        widest = entropy.to(self.entropy.dtype)
        self.entropy.index_add_(0, self._positions.flatten(), widest)
        self.targets.index_add_(0, self._positions.flatten(), valid.flatten().long())
        self.correct += ((logits.argmax(-1) == targets) & valid).sum()
        return entropy.sum(), widest.sum()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in ("correct", "entropy", "targets"):
            whole = trainer.strategy.reduce(getattr(self, name).clone(), reduce_op="sum")
            setattr(self, name, whole.cpu())
