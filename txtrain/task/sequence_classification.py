"""Classification of texts and pairs of texts, by an encoder that may have been trained before."""

from typing import ClassVar

from torch import Tensor, nn

from txtrain.model import EncoderWithHead
from txtrain.plots.view import TextView, View
from txtrain.predict.labels import TextLabeller
from txtrain.predict.predictor import Predictor
from txtrain.task.base import Batch
from txtrain.task.classification import Classification


class SequenceClassification(Classification):
    """One of L labels for each text, or pair of texts, by an encoder and a head that pools.

    A batch has tokens and padding (B, T), for pairs types (B, T), and targets (B,).
    """

    model_class: ClassVar[type[nn.Module]] = EncoderWithHead
    content: ClassVar[str] = "labelled text"
    predictor: ClassVar[type[Predictor] | None] = TextLabeller
    view: ClassVar[type[View]] = TextView

    def logits(self, batch: Batch) -> Tensor:
        return self.model(batch["tokens"], types=batch.get("types"), padding=batch["padding"])

    def described(self, batch: Batch) -> list[str]:
        return TextView(self).texts(batch)
