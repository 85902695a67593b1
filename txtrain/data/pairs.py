"""Pairs of passages for next-sentence prediction: the second follows the first in the text, or comes from elsewhere."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from txtrain.data.masked import MaskedWindows, Masking
from txtrain.data.order import sample_generator
from txtrain.data.packing import IGNORED, PADDING, Windows
from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError

ENDS = (".", "!", "?")

Tokens = NDArray[np.int64]


class PairMasking(Masking):
    """Masked pairs of passages, half of which belong together (BERT, https://arxiv.org/abs/1810.04805).

    Args:
        rest: as in `Masking`.
    """

    content = "masked pairs"
    added = 3

    def check(self, packing: str) -> None:
        if packing != "concat":
            raise UserError(f"data.packing={packing} is not for pairs of passages: leave it out, or set task=masked_lm")

    def samples(self, windows: Windows, tokenizer: Tokenizer, seed: int) -> "PairWindows":
        return PairWindows(windows, masking=self, tokenizer=tokenizer, seed=seed)


class PairWindows(MaskedWindows):
    """Samples `<cls> A <sep> B <sep>`: a window is cut where a sentence ends, and in half of the samples B is not the
    rest of it but as many tokens from another place, which begin a sentence there too.

    Beside what `MaskedWindows` gives, a batch has `types` (B, T), 1 for B and its separator, and `follows` (B,): 1 if B
    is the rest, 0 if not, `IGNORED` for an empty row.

    Args:
        windows: of the text, each 3 tokens shorter than a sample.
        rest: as in `MaskedWindows`.
    """

    def __init__(self, windows: Windows, *, tokenizer: Tokenizer, **rest: Any) -> None:
        super().__init__(windows, tokenizer=tokenizer, **rest)
        texts = tokenizer.core.decode_batch([[token] for token in range(tokenizer.vocab_size)])
        self._ends = np.array(["\n" in text or text.rstrip().endswith(ENDS) for text in texts])
        self._ends[tokenizer.end_of_text] = True

    def _row(self, index: int, text: Tokens, epoch: int) -> dict[str, NDArray[Any]]:
        length = self.windows.seq_len + self.added
        rng = sample_generator(self.seed, epoch, index) if index != PADDING else np.random.default_rng(0)
        first, second, follows = self._pair(index, text, rng) if index != PADDING else (text, text, IGNORED)
        used = len(first) + len(second) + self.added if index != PADDING else 0
        tokens, targets, types = (
            np.full(length, self.filler),
            np.full(length, IGNORED),
            np.zeros(length, dtype=np.int64),
        )
        if used:
            plain = np.concatenate([[self.opening], first, [self.closing], second, [self.closing]])
            tokens[:used], targets[:used] = self.masker(plain, rng)
            types[len(first) + 2 : used] = 1
        row = {"tokens": tokens, "targets": targets, "types": types, "padding": np.arange(length) < used}
        return row | {"follows": np.array(follows)}

    def _pair(self, index: int, text: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens, int]:
        cut = self._cut(text, rng)
        first, rest = text[:cut], text[cut:]
        if len(self.windows) == 1 or rng.random() < 0.5:
            return first, rest, 1
        other = (index + 1 + int(rng.integers(len(self.windows) - 1))) % len(self.windows)
        place = other * self.windows.seq_len
        place += self._cut(self.windows.stream[place : place + self.windows.seq_len].astype(np.int64), rng)
        return first, self.windows.stream[place : place + len(rest)].astype(np.int64), 0

    def _cut(self, text: Tokens, rng: np.random.Generator) -> int:
        """Where a passage ends: after a sentence, or anywhere if none ends in the text."""
        ends = 1 + np.flatnonzero(self._ends[text[:-1]])
        return int(rng.choice(ends)) if len(ends) else int(rng.integers(len(text) + 1))
