"""Texts as tokens, in padded rows."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtrain.data.tokenizer import Tokenizer

MULTIPLE = 8  # a batch is as wide as its longest row, rounded up to this

Tokens = NDArray[np.int64]


class RowMaker:
    """Texts and pairs of texts, as tokens, to padded rows.

    Args:
        tokenizer: that has a class and a separator token.
        seq_len: most tokens of a row; a longer one is cut, of a pair the longer text first, as BERT does.
    """

    def __init__(self, tokenizer: Tokenizer, *, seq_len: int) -> None:
        self.opening, self.closing = tokenizer.special("class"), tokenizer.special("separator")
        self.between = tokenizer.between_texts() or [self.closing]
        self.filler, self.seq_len = tokenizer.filler, seq_len

    def batch(self, rows: Sequence[tuple[Tokens, Tokens | None] | None], *, types: bool = False) -> dict[str, Tensor]:
        """Rows, None for an empty one → `tokens` and `padding`, and `types` if asked for, (B, T) each."""
        made = [([], 0) if row is None else self._row(*row) for row in rows]
        width = padded_width(max(len(tokens) for tokens, _ in made), self.seq_len)
        tokens = np.full((len(made), width), self.filler, dtype=np.int64)
        lengths, seconds = np.array([len(row) for row, _ in made]), np.array([begin for _, begin in made])
        for number, (row, _) in enumerate(made):
            tokens[number, : len(row)] = row
        column = np.arange(width)
        padding = column < lengths[:, None]
        batch = {"tokens": tokens, "padding": padding}
        if types:
            batch["types"] = ((column >= seconds[:, None]) & padding).astype(np.int64)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _row(self, first: Tokens, second: Tokens | None) -> tuple[list[int], int]:
        """The tokens of a row, and where the second text begins, or the row ends."""
        if second is None:
            row = [self.opening, *first[: self.seq_len - 2].tolist(), self.closing]
            return row, len(row)
        room = self.seq_len - 2 - len(self.between)
        if len(first) + len(second) > room:
            kept = max(room - len(second), min(len(first), room - room // 2))
            first, second = first[:kept], second[: room - kept]
        begin = len(first) + 1 + len(self.between)
        return [self.opening, *first.tolist(), *self.between, *second.tolist(), self.closing], begin


def padded_width(longest: int, most: int) -> int:
    """Of a batch whose longest row is so long: a multiple, so that few shapes occur, but no more than the most."""
    return min(max(MULTIPLE, -(-longest // MULTIPLE) * MULTIPLE), most)
