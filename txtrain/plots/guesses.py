"""What a classifier says of each sample of an evaluation, of its first data set, gathered over all devices."""

from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

NONE = -1


class Guesses(Callback):
    """Stands where a task has its loss, since the scores of all samples pass there, and hands on to it.

    Args:
        loss: the task's.

    Attributes:
        guesses: (N,) the label that each sample was taken for, `NONE` where it was left out.
        targets: (N,) its own label.
        probabilities: (N,) what the model gave to it.
    """

    def __init__(self, loss: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.loss = loss

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        size = len(trainer.datamodule.first_part.samples("validation"))
        self.guesses = torch.zeros(size, dtype=torch.int64, device=pl_module.device)
        self.targets = torch.zeros_like(self.guesses)
        self.probabilities = torch.zeros(size, dtype=torch.float32, device=pl_module.device)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._index = batch["index"] if dataloader_idx == 0 else torch.full_like(batch["index"], NONE)

    def __call__(self, logits: Tensor, targets: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        """As `txtrain.model.head.Loss` does: logits (B, 1, L), targets (B, 1)."""
        real = self._index >= 0
        best = logits[:, 0].float().softmax(-1).max(-1)
        # One more than the label, so that the sum over devices is 0 where no device had the sample.
        self.guesses[self._index[real]] = best.indices[real] + 1
        self.targets[self._index[real]] = targets[real, 0]
        self.probabilities[self._index[real]] = best.values[real]
        return self.loss(logits, targets, *rest)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in ("guesses", "targets", "probabilities"):
            setattr(self, name, trainer.strategy.reduce(getattr(self, name).clone(), reduce_op="sum").cpu())
        self.guesses -= 1

    def wrong_first(self, most: int) -> list[int]:
        """Numbers of samples (N,): those that are wrong, the surest first, then those that are right, the least sure
        first."""
        seen = (self.guesses != NONE).nonzero()[:, 0]
        wrong = self.guesses[seen] != self.targets[seen]
        order = torch.where(wrong, -2 - self.probabilities[seen], self.probabilities[seen]).argsort(stable=True)
        return seen[order][:most].tolist()
