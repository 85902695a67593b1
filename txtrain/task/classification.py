"""Classification of whole samples: one label for each."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from txtrain.task.base import Batch, Example, Task
from txtrain.task.scores import accuracy, count_confusions, macro_f1, matthews

REPORTED = 100  # classes of which each is told


class Classification(Task):
    """One of L labels for each sample; a subclass says how a batch is scored. A batch has targets (B,)."""

    targets: ClassVar[str] = "samples"
    weighs_classes: ClassVar[bool] = True
    confusions: Tensor | None = None

    @abstractmethod
    def logits(self, batch: Batch) -> Tensor:
        """Scores of the labels (B, L)."""

    def examples(self, index: Sequence[int]) -> list[Example]:
        batch, labels = self.validation_batch(index), self.data.labels
        guesses = self.logits(batch).argmax(-1).tolist()
        rows = zip(self.described(batch), batch["targets"].tolist(), guesses, strict=True)
        return [Example(given, labels[target], labels[guess]) for given, target, guess in rows]

    def described(self, batch: Batch) -> list[str]:
        """The samples in words, where they have some."""
        return [""] * len(batch["targets"])

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self._losses(self.logits(batch), batch["targets"])

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        logits, targets = self.logits(batch), batch["targets"]
        _, entropy = self._losses(logits, targets)
        return {"entropy": entropy, **self.count(logits, targets)}

    def count(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """What is counted of guesses: how many targets there are, and which label was taken for which."""
        confusions = count_confusions(logits.argmax(-1), targets, logits.size(-1))
        return {"targets": confusions.sum(), "confusions": confusions}

    @classmethod
    def measured(cls, data: Any) -> tuple[str, ...]:
        return (*super().measured(data), "accuracy", "f1", "matthews")

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        counts = self.confusions = sums["confusions"]
        scores = {"accuracy": accuracy(counts), "f1": macro_f1(counts), "matthews": matthews(counts)}
        return super().metrics(sums) | scores

    def report(self) -> dict[str, Any]:
        """How often each label was found, and what was taken for it, in the last validation."""
        labels, counts = self.data.labels, self.confusions
        if counts is None or len(labels) > REPORTED:
            return {}
        found = (counts.diagonal().double() / counts.sum(1)).tolist()
        recall = {label: share for label, share in zip(labels, found, strict=True) if not math.isnan(share)}
        return {"recall_by_label": recall, "labels": list(labels), "confusions": counts.tolist()}

    def scored(self, batch: Batch) -> int:
        return len(batch["targets"])

    def _losses(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.loss(logits[:, None], targets[:, None])
