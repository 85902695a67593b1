"""Rows of conversations: kept whole on the disk, and packed into windows of a length when they are read.

A row of n tokens predicts n - 1 of them, of which the assistant's are targets. A window holds whole rows, one after the
other; no row goes on in the next window, and none sees another.
"""

import linecache
from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtrain.data.packing import IGNORED, PADDING
from txtrain.data.turns import Turns

ROW = np.dtype([("start", "<i8"), ("first", "<i8"), ("targets", "<i8"), ("bytes", "<i8")])
"""Where a row starts in the file of tokens, its first target, how many it has, and their bytes of text."""


def token_record(token_type: str) -> np.dtype[Any]:
    """A token on the disk: its id, whether it is the assistant's, and how many bytes of the assistant's text it has."""
    return np.dtype([("token", token_type), ("assistant", "?"), ("size", "<u2")])


class RowWriter:
    """Writes the rows of a split: tokens, where each row starts, and the line that it came from.

    Args:
        folder: of the cache's entry.
        split: whose files they are.
        token_type: of ids, "uint16" or "uint32".
    """

    def __init__(self, folder: Path, split: str, token_type: str) -> None:
        self._record, self._rows = token_record(token_type), folder / f"{split}.rows.npy"
        self._tokens = (folder / f"{split}.bin").open("wb")
        self._places = (folder / f"{split}.places.txt").open("w", encoding="utf-8")
        self._written: list[tuple[int, int, int, int]] = []
        self._end = 0

    def write(self, turns: Turns, place: str) -> None:
        records = np.empty(len(turns.tokens), dtype=self._record)
        records["token"], records["assistant"], records["size"] = turns.tokens, turns.assistant, turns.sizes
        records.tofile(self._tokens)
        targets = 1 + np.flatnonzero(turns.assistant[1:])
        first = int(targets[0]) if len(targets) else len(records)
        self._written.append((self._end, first, len(targets), int(turns.sizes[1:].sum())))
        self._end += len(records)
        self._places.write(" ".join(place.split()) + "\n")

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens.close()
        self._places.close()
        np.save(self._rows, np.array([*self._written, (self._end, 0, 0, 0)], dtype=ROW))


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long the rows of a split are, in tokens, and what became of those that do not fit."""

    rows: int
    median: int
    long: int  # 95 of 100 are no longer
    longest: int
    too_long: int
    left_out: int  # too long, or without a target in the window
    filled: float  # part of the windows' places that rows take


class RowWindows:
    """Windows over the rows of a split.

    Args:
        folder: of the cache's entry.
        split: whose files they are.
        token_type: of ids, "uint16" or "uint32".
        seq_len: tokens T in a window.
        too_long: what to do with a row of more than `seq_len + 1` tokens: cut it there, or leave it out.
        end_of_text: the id that fills up.
    """

    def __init__(
        self,
        *,
        folder: Path,
        split: str,
        token_type: str,
        seq_len: int,
        too_long: Literal["truncate", "drop"],
        end_of_text: int,
    ) -> None:
        self.path, self.places = folder / f"{split}.bin", folder / f"{split}.places.txt"
        self.record, self.seq_len, self.end_of_text = token_record(token_type), seq_len, end_of_text
        rows = np.load(folder / f"{split}.rows.npy")
        whole = np.diff(rows["start"]) - 1
        rows, longer = rows[:-1], whole > seq_len
        self.starts, self.lengths = rows["start"], np.minimum(whole, seq_len)
        kept = rows["first"] <= self.lengths
        if too_long == "drop":
            kept &= ~longer
        chosen = np.flatnonzero(kept)
        self.windows = [chosen[window] for window in pack(self.lengths[chosen], seq_len)]
        self.targets, self.bytes = int(rows["targets"][kept].sum()), int(rows["bytes"][kept].sum())
        for row in np.flatnonzero(kept & longer).tolist():
            cut = self._records(row)[1:]
            self.targets += int(cut["assistant"].sum()) - int(rows["targets"][row])
            self.bytes += int(cut["size"].sum()) - int(rows["bytes"][row])
        middle, high = np.percentile(whole + 1, [50, 95], method="higher") if len(whole) else (0, 0)
        self.told = Lengths(
            rows=len(whole),
            median=int(middle),
            long=int(high),
            longest=int(whole.max(initial=-1)) + 1,
            too_long=int(longer.sum()),
            left_out=int((~kept).sum()),
            filled=int(self.lengths[kept].sum()) / max(1, len(self.windows) * seq_len),
        )

    def __len__(self) -> int:
        return len(self.windows)

    @cached_property
    def stream(self) -> NDArray[Any]:
        """All tokens, as they lie in the file."""
        return np.memmap(self.path, dtype=self.record, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        # A memory map that travels to a worker by pickling would take the whole file along.
        return {name: value for name, value in self.__dict__.items() if name != "stream"}

    def batch(self, index: NDArray[np.int64], epoch: int = 0) -> dict[str, Tensor]:
        """The windows with these indices, `PADDING` for an empty row: tensors (B, T) of int64, `index` (B,) and
        `num_tokens` (B,), those of rows.

        What fills up a window is a document of its own.
        """
        shape = (len(index), self.seq_len)
        batch = {
            "tokens": np.full(shape, self.end_of_text, dtype=np.int64),
            "targets": np.full(shape, IGNORED, dtype=np.int64),
            "positions": np.tile(np.arange(self.seq_len), (len(index), 1)),
            "documents": np.zeros(shape, dtype=np.int64),
            "index": index.astype(np.int64),
            "num_tokens": np.zeros(len(index), dtype=np.int64),
        }
        for line, window in enumerate(index):
            done = 0
            for row in [] if window == PADDING else self.windows[window]:
                records = self._records(row)
                place = (line, slice(done, done + len(records) - 1))
                batch["tokens"][place] = records["token"][:-1]
                batch["targets"][place] = np.where(records["assistant"], records["token"].astype(np.int64), IGNORED)[1:]
                done += len(records) - 1
                batch["positions"][line, done:] = np.arange(self.seq_len - done)
                batch["documents"][line, done:] += 1
            batch["num_tokens"][line] = done
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def parts(self, index: int, most: int) -> list[tuple[int, list[int]]]:
        """Of each row of a window, where in the file of tokens it begins, and the tokens around its first target.

        Rows may well begin alike, with the template's own words.
        """
        found = []
        for row in self.windows[index]:
            records = self._records(row)
            shown = max(0, int(records["assistant"].argmax()) - most // 2)
            found.append((int(self.starts[row]), records["token"][shown : shown + most].tolist()))
        return found

    def origins(self, index: int) -> list[str]:
        """The file and line of each row of a window."""
        return [linecache.getline(str(self.places), row + 1).rstrip() for row in self.windows[index].tolist()]

    def _records(self, row: int) -> NDArray[Any]:
        """The tokens of a row that fit into a window, and the target of the last one."""
        start = self.starts[row]
        return self.stream[start : start + self.lengths[row] + 1]


def pack(lengths: NDArray[np.int64], room: int) -> list[list[int]]:
    """Items into as few windows as best-fit decreasing finds: the longest first, each where least room is left over.

    https://doi.org/10.1137/0203025; at most 11/9 of the fewest windows, and the same ones for the same lengths.
    """
    windows: list[list[int]] = []
    having: dict[int, list[int]] = defaultdict(list)  # windows by the room that they have left
    rooms: list[int] = []  # in order, those that some window has
    for item in np.argsort(-lengths, kind="stable").tolist():
        at = bisect_left(rooms, lengths[item])
        left = rooms[at] if at < len(rooms) else room
        if at < len(rooms):
            window = having[left].pop()
            if not having[left]:
                del rooms[at]
        else:
            window = len(windows)
            windows.append([])
        windows[window].append(item)
        left -= int(lengths[item])
        if left and not having[left]:
            insort(rooms, left)
        having[left].append(window)
    return windows
