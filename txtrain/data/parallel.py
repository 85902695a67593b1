"""Pairs of texts as tokens: kept whole on the disk, and padded to the longest when they are read."""

import linecache
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtrain.data.packing import IGNORED, PADDING

SIDES = ("source", "target")


class Pair(NamedTuple):
    """A text, its translation, and where they come from: a file and line."""

    source: str
    target: str
    place: str = ""


class ParallelWriter:
    """Writes the pairs of a split: the tokens of each side, where each pair starts, and what it is.

    Args:
        folder: of the cache's entry.
        split: whose files they are.
        dtype: of ids, "uint16" or "uint32".
    """

    def __init__(self, folder: Path, split: str, dtype: str) -> None:
        self._dtype, self._starts_file = dtype, folder / f"{split}.npy"
        self._tokens = [(folder / f"{split}.{side}.bin").open("wb") for side in SIDES]
        self._places = (folder / f"{split}.places.txt").open("w", encoding="utf-8")
        self._starts = [[0, 0]]

    def write(self, source: list[int], target: list[int], place: str) -> None:
        for file, ids in zip(self._tokens, (source, target), strict=True):
            np.array(ids, dtype=self._dtype).tofile(file)
        last = self._starts[-1]
        self._starts.append([last[0] + len(source), last[1] + len(target)])
        self._places.write(" ".join(place.split()) + "\n")

    def __enter__(self) -> "ParallelWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (*self._tokens, self._places):
            file.close()
        np.save(self._starts_file, np.array(self._starts, dtype=np.int64))


class ParallelSamples:
    """The pairs of a split.

    A target is as its tokenizer wrote it, its end included: the decoder reads `start` and the target but for its end,
    and predicts the target.

    Args:
        folder: of the cache's entry.
        split: whose files they are.
        dtype: of ids, "uint16" or "uint32".
        seq_len: most tokens of a side.
        start: what the decoder begins with.
        longer: whether pairs with a longer side are there, cut; otherwise they are left out.
    """

    def __init__(self, *, folder: Path, split: str, dtype: str, seq_len: int, start: int, longer: bool) -> None:
        self.folder, self.split, self.dtype, self.seq_len, self.start = folder, split, np.dtype(dtype), seq_len, start
        starts = np.load(folder / f"{split}.npy")
        whole = np.diff(starts, axis=0)
        long = (whole > seq_len).any(axis=1)
        kept = np.ones_like(long) if longer else ~long
        self.pairs = np.flatnonzero(kept)  # their numbers in the files
        self.starts = starts[:-1][kept]
        self.lengths = np.minimum(whole[kept], seq_len)  # (N, 2) tokens of source and target
        self.too_long = int(long.sum())

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def streams(self) -> list[NDArray[np.unsignedinteger]]:
        """All tokens of the sources and of the targets, as they lie in the files."""
        return [np.memmap(self.folder / f"{self.split}.{side}.bin", dtype=self.dtype, mode="r") for side in SIDES]

    def __getstate__(self) -> dict[str, Any]:
        # A memory map that travels to a worker by pickling would take the whole file along.
        return {name: value for name, value in self.__dict__.items() if name != "streams"}

    def ids(self, index: int) -> tuple[list[int], list[int]]:
        """The tokens of a pair's source and target, as far as they are read."""
        starts, ends = self.starts[index], self.starts[index] + self.lengths[index]
        source, target = (stream[a:b].tolist() for stream, a, b in zip(self.streams, starts, ends, strict=True))
        return source, target

    def place(self, index: int) -> str:
        """The file and line of a pair."""
        return linecache.getline(str(self.folder / f"{self.split}.places.txt"), int(self.pairs[index]) + 1).rstrip()

    def batch(self, index: NDArray[np.int64], epoch: int = 0) -> dict[str, Tensor]:
        """The pairs with these indices, `PADDING` for an empty row, each side as long as its longest.

        source (B, S) and source_padding (B, S), True for real tokens; tokens and targets (B, T); index (B,). An empty
        row has a source of one token, since attention to nothing has no value, and no target.
        """
        pairs = [([0], []) if i == PADDING else self.ids(i) for i in index.tolist()]
        source = np.zeros((len(pairs), max(len(source) for source, _ in pairs)), dtype=np.int64)
        padding = np.zeros(source.shape, dtype=bool)
        tokens = np.full((len(pairs), max(1, *(len(target) for _, target in pairs))), self.start, dtype=np.int64)
        targets = np.full(tokens.shape, IGNORED, dtype=np.int64)
        for row, (read, written) in enumerate(pairs):
            source[row, : len(read)], padding[row, : len(read)] = read, True
            tokens[row, 1 : len(written)], targets[row, : len(written)] = written[:-1], written
        batch = {"source": source, "source_padding": padding, "tokens": tokens, "targets": targets}
        batch["num_tokens"] = (padding.sum(1) + (targets != IGNORED).sum(1)) * (index != PADDING)
        return {name: torch.from_numpy(array) for name, array in (batch | {"index": index.astype(np.int64)}).items()}
