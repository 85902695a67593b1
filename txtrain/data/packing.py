"""Packing: one long stream of tokens, cut into windows of equal length.

The stream of a split is `<end> document <end> document <end> ...`: the end of text closes each document and opens the
next. Window i holds the `seq_len + 1` tokens from `i * seq_len` on, so neighbours share one token and every token but
the first is a target exactly once. The last window is filled up with targets that do not count.

Where the tokenizer sets `<s>` before a text, `<s>` opens each document, as it opens a prompt. The stream is
`<end> <s> document <end> <s> document <end> ...`, and `<s>` is never a target.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100
PADDING = -1


class Windows:
    """Windows over a file of tokens.

    Args:
        path: tokens as plain unsigned integers.
        dtype: "uint16" or "uint32".
        seq_len: tokens T in a window.
        packing: with "documents" a batch also says which document each token is in and at which position.
        end_of_text: the id between documents.
        opening: ids that stand before each document beside that, if there are any.
    """

    def __init__(
        self,
        *,
        path: Path,
        dtype: str,
        seq_len: int,
        packing: Literal["concat", "documents"],
        end_of_text: int,
        opening: Sequence[int] = (),
    ) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.seq_len = seq_len
        self.packing = packing
        self.end_of_text = end_of_text
        self.opens = opening[0] if opening else end_of_text
        self.given = [token for token in opening if token != end_of_text]  # no model writes them
        self.targets = max(0, path.stat().st_size // self.dtype.itemsize - 1)

    def __len__(self) -> int:
        return -(-self.targets // self.seq_len)

    @cached_property
    def stream(self) -> NDArray[np.unsignedinteger]:
        """All tokens, as they lie in the file."""
        return np.memmap(self.path, dtype=self.dtype, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        # A memory map that travels to a worker by pickling would take the whole file along.
        return {name: value for name, value in self.__dict__.items() if name != "stream"}

    def batch(self, index: NDArray[np.int64], epoch: int = 0) -> dict[str, Tensor]:
        """The windows with these indices, `PADDING` for an empty row: tensors (B, T) of int64, and `index` (B,)."""
        window, real = self.read(index)
        tokens = window[:, :-1]
        batch = {
            "tokens": tokens,
            "targets": np.where(real[:, 1:] & ~np.isin(window[:, 1:], self.given), window[:, 1:], IGNORED),
            "index": index.astype(np.int64),
        }
        if self.packing == "documents":
            batch |= self.separate(tokens)
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}

    def read(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The tokens of windows and of the target after each (B, T + 1), and which of them are real."""
        stream = self.stream
        place = index[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        real = (place <= self.targets) & (index[:, None] != PADDING)
        return np.where(real, stream[np.where(real, place, 0)], self.end_of_text).astype(np.int64), real

    def parts(self, index: int, most: int) -> list[tuple[int, list[int]]]:
        """How a window begins: where in the file, and its first tokens."""
        start = index * self.seq_len
        return [(start, self.stream[start : start + most].tolist())]

    def origins(self, index: int) -> list[str]:
        """The lines that a window comes from: unknown in a stream."""
        return []

    def separate(self, tokens: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Each token's document, counted within its row, and its position there."""
        opens = tokens == self.opens
        opens[:, 0] = True
        column = np.arange(tokens.shape[1])
        start = np.maximum.accumulate(np.where(opens, column, 0), axis=1)
        return {"positions": column - start, "documents": np.cumsum(opens, axis=1) - 1}
