"""Classification of images by an encoder of patches (ViT, DeiT)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from txtrain.model import EncoderWithHead
from txtrain.plots.view import ImageView, View
from txtrain.predict.pictures import ImageLabeller
from txtrain.predict.predictor import Predictor
from txtrain.task.base import Batch
from txtrain.task.classification import Classification

FIRST = 5  # of this many guesses one is right


class ImageClassification(Classification):
    """One of L labels for each image, by an encoder and a head that pools (https://arxiv.org/abs/2010.11929).

    A batch has images (B, C, height, width) and targets (B,); where images are mixtures of two, also the others' labels
    (B,) and the shares (B,) of the first ones.
    """

    model_class: ClassVar[type[nn.Module]] = EncoderWithHead
    content: ClassVar[str] = "labelled images"
    predictor: ClassVar[type[Predictor] | None] = ImageLabeller
    told: ClassVar[int] = 8
    unit: ClassVar[str] = "images"
    counts_targets: ClassVar[bool] = True
    view: ClassVar[type[View]] = ImageView

    def logits(self, batch: Batch) -> Tensor:
        return self.model(batch["images"])

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of a mixture, the loss on each of its labels by its share."""
        if "others" not in batch:
            return super().losses(batch)
        targets = torch.stack((batch["targets"], batch["others"]), dim=-1)
        shares = torch.stack((batch["shares"], 1 - batch["shares"]), dim=-1)
        return self.loss(self.logits(batch)[:, None], targets[:, None], shares[:, None])

    def length(self, batch: Batch) -> int:
        positions: Tensor = self.model.embedding.positions(batch["images"])  # type: ignore[operator, union-attr]
        return positions.size(1)

    def count(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        found = super().count(logits, targets)
        if logits.size(-1) > FIRST:
            found["first"] = (logits.topk(FIRST).indices == targets[:, None]).sum()
        return found

    @classmethod
    def measured(cls, data: Any) -> tuple[str, ...]:
        return (*super().measured(data), *((f"top_{FIRST}",) if len(data.labels) > FIRST else ()))

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = super().metrics(sums)
        if "first" in sums:
            found[f"top_{FIRST}"] = (sums["first"].double() / sums["targets"]).item()
        return found
