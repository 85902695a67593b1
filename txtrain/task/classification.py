"""Classification of whole samples: one label for each."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from txtrain.task.base import Batch, Task
from txtrain.task.scores import accuracy, count_confusions, macro_f1, matthews


class Classification(Task):
    """One of L labels for each sample; a subclass says how a batch is scored. A batch has targets (B,)."""

    targets: ClassVar[str] = "samples"

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """Scores of the labels (B, L)."""

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self._losses(self.logits(batch), batch["targets"])

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        logits, targets = self.logits(batch), batch["targets"]
        _, entropy = self._losses(logits, targets)
        confusions = count_confusions(logits.argmax(-1), targets, logits.size(-1))
        return {"entropy": entropy, "targets": confusions.sum(), "confusions": confusions}

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        counts = sums["confusions"]
        scores = {"accuracy": accuracy(counts), "f1": macro_f1(counts), "matthews": matthews(counts)}
        return super().metrics(sums) | scores

    def flops_per_token(self, length: int) -> float:
        """For one sample: each target has a sequence of its own."""
        return super().flops_per_token(length) * length

    def _losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.loss(logits[:, None], targets[:, None])
