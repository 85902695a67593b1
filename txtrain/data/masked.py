"""Windows of a text as a masked language model sees them: a class token, the text, a separator, some of it masked."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtrain.data.masking import Masker, Unit
from txtrain.data.order import sample_generator
from txtrain.data.packing import IGNORED, PADDING, Windows
from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError


class Masking:
    """Dynamic masking (https://arxiv.org/abs/1810.04805, https://arxiv.org/abs/1907.11692): anew in each epoch.

    Args:
        rate: share of a sample's tokens that the model must find; special tokens are never among them.
        unit: what is chosen as a whole: a `token`; all tokens of a `word`; or a `span` of words, whose length is
        geometric
            with p = 0.2 and at most 10, 3.8 on average (SpanBERT, https://arxiv.org/abs/1907.10529).
        masked: share of the chosen that becomes the mask token.
        random: share that becomes any other token; the rest stays as it is. Spans become one of the three as a whole.
    """

    content = "masked text"  # what the samples are, to a task
    added = 2  # special tokens of a sample

    def __init__(
        self,
        *,
        rate: float = 0.15,
        unit: Unit = "token",
        masked: float = 0.8,
        random: float = 0.1,
    ) -> None:
        if not 0 < rate < 1:
            raise UserError(f"data.masking.rate={rate} is not between 0 and 1: set data.masking.rate=0.15")
        if unit not in ("token", "word", "span"):
            raise UserError(f"data.masking.unit={unit} is unknown: set data.masking.unit=token, word or span")
        if min(masked, random) < 0 or masked + random > 1:
            raise UserError(
                f"data.masking.masked={masked} and data.masking.random={random} are no shares of a whole: "
                "set data.masking.masked=0.8 data.masking.random=0.1"
            )
        self.rate, self.unit, self.masked, self.random = rate, unit, masked, random

    def check(self, packing: str) -> None:
        """Refuses a packing that these samples cannot be made of."""

    def description(self) -> str:
        """What is masked, in words."""
        units = {"token": "tokens", "word": "tokens, in whole words", "span": "tokens, in spans of words"}
        others = 1 - self.masked - self.random
        return (
            f"{self.rate:.0%} of the {units[self.unit]}; {self.masked:.0%} of them become <mask>, "
            f"{self.random:.0%} other tokens, {others:.0%} stay"
        )

    def samples(self, windows: Windows, tokenizer: Tokenizer, seed: int) -> "MaskedWindows":
        """Windows as a masked language model sees them, with masks that follow from the seed."""
        return MaskedWindows(windows, masking=self, tokenizer=tokenizer, seed=seed)

    def masker(self, tokenizer: Tokenizer) -> Masker:
        """What masks the tokens of this tokenizer."""
        return Masker(tokenizer, rate=self.rate, unit=self.unit, masked=self.masked, random=self.random)


class MaskedWindows:
    """Samples `<cls> text <sep>`, where the text is a window that may hold ends of documents (RoBERTa's
    FULL-SENTENCES).

    A batch has `tokens` and `targets` (B, T), `padding` (B, T) if there is any, `index` (B,), and for windows of
    documents `documents` and `positions` (B, T).

    Args:
        windows: of the text, each 2 tokens shorter than a sample.
        masking: what the model must find.
        tokenizer: that has a mask, a class and a separator token.
        seed: of the masks.
    """

    def __init__(self, windows: Windows, *, masking: Masking, tokenizer: Tokenizer, seed: int) -> None:
        self.windows, self.seed, self.added = windows, seed, masking.added
        self.masker = masking.masker(tokenizer)
        self.opening, self.closing = tokenizer.special("class"), tokenizer.special("separator")
        self.filler = tokenizer.filler
        self.filled = {"padding": True}

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, index: NDArray[np.int64], epoch: int = 0) -> dict[str, Tensor]:
        """The samples with these indices, `PADDING` for an empty row; masks follow from the seed, epoch and index."""
        texts, real = self.windows.read(index)
        rows = [
            self._row(int(i), text[:-1][keep[:-1]], epoch) for i, text, keep in zip(index, texts, real, strict=True)
        ]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]} | {"index": index.astype(np.int64)}
        batch["num_tokens"] = batch["padding"].sum(1)
        if batch["padding"].all():
            del batch["padding"]  # without it attention may run its fastest kernel
        if self.windows.packing == "documents":
            batch |= self.windows.separate(batch["tokens"])
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}

    def _row(self, index: int, text: NDArray[np.int64], epoch: int) -> dict[str, NDArray[Any]]:
        """One sample: its text is empty for `PADDING`."""
        length = self.windows.seq_len + self.added
        tokens, targets = np.full(length, self.filler), np.full(length, IGNORED)
        used = len(text) + self.added if index != PADDING else 0
        if used:
            seen, found = self.masker(text, sample_generator(self.seed, epoch, index))
            tokens[:used] = [self.opening, *seen, self.closing]
            targets[1 : used - 1] = found
        return {"tokens": tokens, "targets": targets, "padding": np.arange(length) < used}
