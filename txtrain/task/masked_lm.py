"""Masked language modelling: find the masked tokens from all others (BERT, RoBERTa, SpanBERT)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txtrain.model import EncoderWithHead, EncoderWithPairs
from txtrain.model.flops import head_flops, trains
from txtrain.model.head import IGNORED, widest_float
from txtrain.plots.view import TextView, View, in_brackets
from txtrain.predict.masked import MaskFiller, PairMaskFiller
from txtrain.predict.predictor import Predictor
from txtrain.task.base import Batch, Example, Task

BEFORE, SHOWN = 8, 48  # tokens before the first masked one, and in all, that are shown of a sample


class MaskedLM(Task):
    """Finds masked tokens with an encoder (https://arxiv.org/abs/1810.04805); only they are scored.

    A batch has tokens, targets and padding (B, T); with data.packing=documents also documents and positions (B, T).
    """

    model_class: ClassVar[type[nn.Module]] = EncoderWithHead
    content: ClassVar[str] = "masked text"
    predictor: ClassVar[type[Predictor] | None] = MaskFiller
    view: ClassVar[type[View]] = TextView

    def logits(self, batch: Batch) -> Tensor:
        """Of the N masked tokens (N, V)."""
        return self._scores(batch)[0]

    def examples(self, index: Sequence[int]) -> list[Example]:
        """Texts around the first masked tokens, with what was masked and what is found there in brackets."""
        batch = self.validation_batch(index)
        hidden = batch["targets"] != IGNORED
        guesses = batch["tokens"].masked_scatter(hidden, self.logits(batch).argmax(-1))
        true = torch.where(hidden, batch["targets"], batch["tokens"])
        shown = TextView(self).shown(batch)
        found = []
        for kept, masked, *rows in zip(shown, hidden, true, guesses, strict=True):
            right, said = (self._excerpt(tokens[kept].tolist(), masked[kept].tolist()) for tokens in rows)
            found.append(Example("", right, said))
        return found

    def _excerpt(self, tokens: list[int], hidden: list[bool]) -> str:
        start = max(0, hidden.index(True) - BEFORE) if True in hidden else 0
        cut = slice(start, start + SHOWN)
        text = in_brackets(self.data.tokenizer.decode, tokens[cut], hidden[cut])
        return "… " * (start > 0) + text + " …" * (len(tokens) > start + SHOWN)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, targets = self._scores(batch)
        return self.loss(logits[None], targets[None])

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        return self._counts(*self._scores(batch))

    @classmethod
    def measured(cls, data: Any) -> tuple[str, ...]:
        return (*super().measured(data), "perplexity", "accuracy")

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = super().metrics(sums)
        perplexity = math.exp(found["loss"]) if found["loss"] < 700 else math.inf
        accuracy = (sums["right"].double() / sums["targets"]).item()
        return found | {"perplexity": perplexity, "accuracy": accuracy}

    def scored(self, batch: Batch) -> Tensor:
        return (batch["targets"] != IGNORED).sum()

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, V) and targets (N,) of the N masked tokens."""
        at = batch["targets"] != IGNORED
        given = {name: batch.get(name) for name in ("positions", "documents", "padding")}
        return self.model(batch["tokens"], at=at, **given), batch["targets"][at]

    def _counts(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        _, entropy = self.loss(logits[None], targets[None])
        right = (logits.argmax(-1) == targets).sum()
        return {"entropy": entropy, "targets": (targets != IGNORED).sum(), "right": right}


class MaskedPairs(MaskedLM):
    """Finds masked tokens in two passages, and says whether the second follows the first (BERT).

    A batch has tokens, targets, types and padding (B, T), and follows (B,). The objective is the mean over masked
    tokens plus the mean over pairs, in which a pair counts as often as it has masked tokens: so the parts of a step add
    up.
    """

    model_class: ClassVar[type[nn.Module]] = EncoderWithPairs
    content: ClassVar[str] = "masked pairs"
    predictor: ClassVar[type[Predictor] | None] = PairMaskFiller

    def logits(self, batch: Batch) -> Tensor:
        return self._both(batch)[0]

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, targets, pairs = self._both(batch)
        objective, entropy = self.loss(logits[None], targets[None])
        weight = (batch["targets"] != IGNORED).sum(1)
        return objective + (self._entropies(pairs, batch) * weight).sum(), entropy

    def flops(self, batch: Batch) -> Tensor | float:
        model: Any = self.model
        trained = trains(self.model.parameters())
        return super().flops(batch) + head_flops(model.pairs, len(batch["targets"]), trained=trained)

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        logits, targets, pairs = self._both(batch)
        valid = batch["follows"] != IGNORED
        return self._counts(logits, targets) | {
            "pair_entropy": self._entropies(pairs, batch).sum(dtype=widest_float(pairs.device)),
            "pairs": valid.sum(),
            "right_pairs": ((pairs.argmax(-1) == batch["follows"]) & valid).sum(),
        }

    @classmethod
    def measured(cls, data: Any) -> tuple[str, ...]:
        return (*super().measured(data), "pair_loss", "pair_accuracy")

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return super().metrics(sums) | {
            "pair_loss": (sums["pair_entropy"] / sums["pairs"]).item(),
            "pair_accuracy": (sums["right_pairs"].double() / sums["pairs"]).item(),
        }

    def _both(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, V) and targets (N,) of the N masked tokens, and logits of pairs (B, 2)."""
        at = batch["targets"] != IGNORED
        logits, pairs = self.model(batch["tokens"], batch["types"], at=at, padding=batch.get("padding"))
        return logits, batch["targets"][at], pairs

    @staticmethod
    def _entropies(pairs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of each pair (B,), 0 for an empty row."""
        return F.cross_entropy(pairs.float(), batch["follows"], ignore_index=IGNORED, reduction="none")
