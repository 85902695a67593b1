"""Transcripts of clips of speech, by connectionist temporal classification."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from txtrain.audio.ctc import greedy
from txtrain.audio.edits import Edits
from txtrain.errors import UserError
from txtrain.model.head import IGNORED, widest_float
from txtrain.model.spectrogram import AudioEncoder
from txtrain.plots.view import SoundView, View
from txtrain.predict.predictor import Predictor
from txtrain.predict.sound import Transcriber
from txtrain.task.base import Batch, Example, Task


class SpeechRecognition(Task):
    """CTC (https://www.cs.toronto.edu/~graves/icml_2006.pdf) on an encoder of spectrograms.

    The encoder scores tokens at each time; the loss is the negative log-probability of the transcript over all its
    alignments, summed over clips and divided by the number of their tokens. The end of text is the blank, which no
    transcript holds. A batch has frames (B, F, M), their lengths (B,), and targets (B, S).
    """

    model: AudioEncoder
    model_class = AudioEncoder
    content = "transcribed sound"
    predictor: ClassVar[type[Predictor] | None] = Transcriber
    told: ClassVar[int] = 3
    unit: ClassVar[str] = "frames"
    view: ClassVar[type[View]] = SoundView

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        if self.loss.label_smoothing or self.loss.z_loss:
            raise UserError(
                "loss.label_smoothing and loss.z_loss are of cross-entropy, and speech_recognition has CTC's loss: "
                "set both to 0"
            )

    @property
    def blank(self) -> int:
        """The token that stands for none."""
        return int(self.data.tokenizer.end_of_text)

    def logits(self, batch: Batch) -> Tensor:
        """Of tokens at each time (B, T, V)."""
        return self.model(batch["frames"], batch["lengths"])

    def examples(self, index: Sequence[int]) -> list[Example]:
        batch = self.validation_batch(index)
        said = self.data.said("validation", index)
        return [
            Example("", true, heard) for true, heard in zip(said, self._heard(self.logits(batch), batch), strict=True)
        ]

    def _heard(self, logits: Tensor, batch: Batch) -> list[str]:
        """logits (B, T, V) → the likeliest transcript of each clip."""
        ids = greedy(logits, self.model.times(batch["lengths"]), self.blank)
        return [self.data.tokenizer.decode(row) for row in ids]

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        losses = self._losses(self.logits(batch), batch)
        return losses.sum(), losses.detach().sum(dtype=widest_float(losses.device))

    def _losses(self, logits: Tensor, batch: Batch) -> Tensor:
        """logits (B, T, V) → of each clip, (B,), 0 for an empty row."""
        targets, real = batch["targets"], batch["targets"] != IGNORED
        losses = F.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            targets.where(real, self.blank),
            self.model.times(batch["lengths"]),
            real.sum(1),
            blank=self.blank,
            reduction="none",
        )
        return losses.where(batch["index"] >= 0, 0.0)

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.logits(batch)
        rows = [
            (i, heard) for i, heard in zip(batch["index"].tolist(), self._heard(logits, batch), strict=True) if i >= 0
        ]
        said = self.data.said("validation", [i for i, _ in rows])
        edits = Edits.of(said, [heard for _, heard in rows])
        counts = {name: torch.tensor(count, device=logits.device) for name, count in vars(edits).items()}
        entropy = self._losses(logits, batch).sum(dtype=widest_float(logits.device))
        return {"entropy": entropy, "targets": (batch["targets"] != IGNORED).sum(), **counts}

    @classmethod
    def measured(cls, data: Any) -> tuple[str, ...]:
        return (*super().measured(data), "wer", "cer")

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        rates = {
            "wer": (sums["word_edits"] / sums["words"]).item(),
            "cer": (sums["character_edits"] / sums["characters"]).item(),
        }
        return super().metrics(sums) | rates

    def scored(self, batch: Batch) -> int:
        return len(batch["frames"]) * self.length(batch)

    def length(self, batch: Batch) -> int:
        return self.model.num_vectors(batch["frames"].size(1))
