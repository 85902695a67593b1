"""Inputs of a prediction: files that are one each, lines of files, and lines of standard input as they come."""

import sys
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from txtrain.data.files import kind, read_lines, walk
from txtrain.data.lines import parse_object
from txtrain.data.tables import read_table
from txtrain.errors import UserError
from txtrain.predict.predictor import Given

STREAM = "-"
ROWS = (".jsonl", ".csv", ".tsv", ".txt")


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input, where it stands, in words, and the folder that paths in it are relative to."""

    given: Given
    place: str
    folder: Path = Path()

    @property
    def record(self) -> dict[str, Any]:
        """What of it is repeated before what is said of it."""
        if isinstance(self.given, Path):
            return {"file": str(self.given)}
        return {"text": self.given} if isinstance(self.given, str) else dict(self.given)


def find_inputs(words: Sequence[str], whole: Set[str]) -> list[Path]:
    """The files that paths, folders and globs name, in order.

    Args:
        words: what the user typed.
        whole: extensions of files that are one input each.

    Raises:
        UserError: there is no such file, or it is of no known kind.
    """
    found = []
    for word in words:
        path, known = Path(word).expanduser(), {*whole, *ROWS}
        if path.is_dir():
            wanted = whole or known
            files = [file for file in walk(path) if _kind(file) in wanted and (_kind(file) in whole or file.is_file())]
        else:
            files = [path] if path.exists() else sorted(map(Path, glob(str(path), recursive=True)))
        if not files:
            raise UserError(f"{word} has no input: give a file, a folder, a glob, or - for lines of standard input")
        for file in files:
            if _kind(file) not in known:
                raise UserError(f"{file} has the unknown extension {file.suffix}: give {', '.join(sorted(known))}")
        found += files
    return found


def read_inputs(files: Sequence[Path], whole: Set[str]) -> Iterator[Input]:
    """All inputs of the files, one after the other; blank lines are none.

    Args:
        files: in order.
        whole: extensions of files that are one input each; then a line of text names such a file.

    Raises:
        UserError: a file has no input, or is no table.
    """
    for file in files:
        if _kind(file) in whole:
            yield Input(given=file, place=str(file))
            continue
        rows = _read_rows(file, whole)
        first = next(rows, None)
        if first is None:
            raise UserError(f"{file} is empty: give a file with an input in it")
        yield first
        yield from rows


def listen() -> Iterator[tuple[int, str]]:
    """Lines of standard input as they come, and their numbers."""
    for number, line in enumerate(iter(sys.stdin.readline, ""), start=1):
        line = line.removeprefix("\ufeff") if number == 1 else line
        if line.strip():
            yield number, line.rstrip("\r\n")


def parse_line(numbered: tuple[int, str], whole: Set[str]) -> Input:
    """A line of standard input: a JSON object if it begins like one, else text, or where inputs are files, a name."""
    number, line = numbered
    place = f"line {number}"
    return Input(given=parse_object(line, place) if line.lstrip().startswith("{") else _plain(line, whole), place=place)


def _plain(line: str, whole: Set[str]) -> Given:
    return Path(line) if whole else line


def _kind(file: Path) -> str:
    """The extension of a file; lines may be compressed."""
    return kind(file) if kind(file) in ROWS else file.suffix.lower()


def _read_rows(file: Path, whole: Set[str]) -> Iterator[Input]:
    """As training reads them."""
    if _kind(file) == ".txt":
        rows: Iterator[tuple[str, Given]] = (
            (place, _plain(line, whole)) for place, line in read_lines(file) if line.strip()
        )
    else:
        rows = iter(read_table(file))
    for place, given in rows:
        yield Input(given=given, place=place, folder=file.parent)
