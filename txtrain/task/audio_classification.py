"""Labels of whole clips of sound (AST, Whisper's encoder)."""

from typing import ClassVar

from torch import Tensor, nn

from txtrain.model.spectrogram import AudioEncoder
from txtrain.plots.view import SoundView, View
from txtrain.predict.predictor import Predictor
from txtrain.predict.sound import SoundLabeller
from txtrain.task.base import Batch
from txtrain.task.classification import Classification


class AudioClassification(Classification):
    """One of L labels for each clip, by an encoder of spectrograms and a head that pools.

    A batch has frames (B, F, M), their lengths (B,), and targets (B,).
    """

    model: AudioEncoder
    model_class: ClassVar[type[nn.Module]] = AudioEncoder
    content: ClassVar[str] = "labelled sound"
    predictor: ClassVar[type[Predictor] | None] = SoundLabeller
    told: ClassVar[int] = 8
    unit: ClassVar[str] = "frames"
    view: ClassVar[type[View]] = SoundView

    def logits(self, batch: Batch) -> Tensor:
        return self.model(batch["frames"], batch["lengths"])

    def length(self, batch: Batch) -> int:
        return self.model.num_vectors(batch["frames"].size(1))
