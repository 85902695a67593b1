"""What came of an evaluation: numbers, tables and JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from txtrain.callbacks.metrics import without_nan
from txtrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Lengths of context from `first` to `last`, and the targets that had so many tokens before them."""

    first: int
    last: int
    entropy: float
    targets: int

    @property
    def loss(self) -> float:
        return self.entropy / self.targets if self.targets else math.nan


@dataclass(frozen=True, kw_only=True)
class Result:
    """A model's numbers on a text.

    Args:
        model: as the user named it.
        encoding: the class of its positional encoding.
        trained_len: the longest sequence in its training.
        text: what it was evaluated on, in words.
        unit: of what its samples are, in words.
        seq_len: tokens in a sample, at most; None if it has no tokens.
        metrics: the task's, by name, `loss` first; of a data set of several, such as `code/loss`, with its name.
        targets: how many there are.
        counted: what they are, in a word.
        buckets: the loss by length of context, of a model that continues texts.
        run: the directory of the model's run, if it has one.
    """

    model: str
    encoding: str
    trained_len: int
    text: str
    unit: str
    seq_len: int | None
    metrics: dict[str, float]
    targets: int
    counted: str = "tokens"
    buckets: list[Bucket] = field(default_factory=list)
    run: Path | None = None

    @property
    def label(self) -> str:
        return f"{self.model} ({self.encoding})"

    def record(self, *, by_position: bool) -> dict[str, Any]:
        """As plain JSON."""
        found = without_nan({"model": self.model} | self.metrics | {self.counted: self.targets})
        found["data"] = self.text
        if self.run is not None:
            found["run"] = str(self.run)
        if self.seq_len is not None:
            found |= {"seq_len": self.seq_len, "trained_len": self.trained_len}
        found["encoding"] = self.encoding
        if by_position:
            found["by_position"] = [
                without_nan({"from": b.first, "to": b.last, "loss": b.loss, "tokens": b.targets}) for b in self.buckets
            ]
        return found


def edges(length: int, trained_len: int) -> list[range]:
    """Lengths of context from 1 to `length` in buckets, two for each doubling; none reaches over `trained_len`."""
    ends = {trained_len, length}
    for power in range(length.bit_length()):
        ends |= {2**power, 3 * 2**power // 2}
    kept = sorted(end for end in ends if end <= length)
    return [range(before + 1, end + 1) for before, end in zip([0, *kept], kept, strict=False)]


def table(results: Sequence[Result]) -> str:
    """A row for each model, and for each of its data sets if there are several."""
    names = [name for name in results[0].metrics if "/" not in name]
    rows = [["model", *(name.replace("_", " ") for name in names), results[0].counted]]
    for result in results:
        sets = dict.fromkeys(name.partition("/")[0] for name in result.metrics if "/" in name)
        for part, prefix in (("", ""), *((name, f"{name}/") for name in sets)):
            found = [result.metrics.get(prefix + name) for name in names]
            numbers = ["-" if value is None else f"{value:.4f}" for value in found]
            rows.append([f"  {part}" if part else result.model, *numbers, "" if part else f"{result.targets:,}"])
    return aligned(rows)


def table_by_position(results: Sequence[Result]) -> str:
    """A row for each bucket that any of the models has, a column for each model; a star is beyond its training."""
    rows = [["context", *(result.label for result in results)]]
    for first, last in sorted({(bucket.first, bucket.last) for result in results for bucket in result.buckets}):
        row = [f"{first}" if first == last else f"{first} to {last}"]
        for result in results:
            bucket = next((b for b in result.buckets if (b.first, b.last) == (first, last)), None)
            star = "*" if last > result.trained_len else " "
            row.append(f"{bucket.loss:.4f}{star}" if bucket and bucket.targets else "- ")
        rows.append(row)
    beyond = any(result.buckets[-1].last > result.trained_len for result in results)
    return aligned(rows) + ("\n* beyond the longest sequence in training" if beyond else "")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def write(path: Path, results: Sequence[Result], *, by_position: bool) -> None:
    """A line of JSON for each model."""
    lines = [json.dumps(result.record(by_position=by_position), ensure_ascii=False) for result in results]
    try:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written ({error.strerror}): name another file") from error
