"""Inputs of a prediction: typed texts, files that are one each, lines of files, and lines of standard input."""

import os
import re
import sys
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

from txtrain.data.files import kind, open_file, read_lines, walk
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


def find_inputs(words: Sequence[str], whole: Set[str]) -> list[Path | Input]:
    """The files that paths, folders and globs name, in order; other words are texts.

    Args:
        words: what the user typed.
        whole: extensions of files that are one input each; then no word is a text.

    Raises:
        UserError: there is no such file, it is of no known kind, or a word that is none looks like a path.
    """
    found = list[Path | Input]()
    for word in words:
        path, known = Path(os.path.expanduser(word)), {*whole, *ROWS}
        if os.path.isdir(path):
            wanted = whole or known
            files = [file for file in walk(path) if _kind(file) in wanted and (_kind(file) in whole or file.is_file())]
        else:
            files = [path] if os.path.lexists(path) else _matches(path)
        if not files and not whole and not os.path.lexists(path) and not _looks_like_path(word):
            found.append(as_text(word, whole))
            continue
        if not files:
            text = "" if whole else ", or --text TEXT if it is a text"
            raise UserError(
                f"{word} has no input: give a file, a folder, a glob, or - for lines of standard input{text}"
            )
        for file in files:
            if _kind(file) not in known:
                raise UserError(f"{file} has the unknown extension {file.suffix}: give {', '.join(sorted(known))}")
        found += files
    return found


def as_text(text: str, whole: Set[str]) -> Input:
    """A text that was typed, or a JSON object if it begins like one.

    Raises:
        UserError: it is empty, or the model reads files.
    """
    if whole:
        raise UserError(f"--text is for models that read texts: give a file of {', '.join(sorted(whole))}")
    if not text.strip():
        raise UserError("a text is empty: give some text")
    return parse_text(text, "the text")


def _matches(pattern: Path) -> list[Path]:
    return sorted(map(Path, glob(str(pattern), recursive=True))) if "\0" not in str(pattern) else []


def _looks_like_path(word: str) -> bool:
    """One word with a slash, a star or an extension, or several that end in one of ours."""
    if re.search(r"\.(jsonl|csv|tsv|txt)(\.\w+)?$", word, re.IGNORECASE):
        return True
    return re.search(r"\s", word) is None and re.search(r"[/\\*]|\.[A-Za-z]\w{1,5}$|^~", word) is not None


def size_of(found: Sequence[Path | Input], whole: Set[str]) -> int:
    """About how many inputs there are, for a bar: blank lines and cells of several lines count as lines."""
    return sum(1 if isinstance(item, Input) or _kind(item) in whole else _lines(item) for item in found)


def _lines(file: Path) -> int:
    try:
        with open_file(file) as stream:
            return max(1, sum(chunk.count(b"\n") for chunk in iter(partial(stream.read, 2**20), b"")))
    except (OSError, EOFError, ValueError, RuntimeError):  # who reads it tells
        return 1


def read_inputs(found: Sequence[Path | Input], whole: Set[str]) -> Iterator[Input]:
    """All inputs of the files, one after the other; blank lines are none.

    Args:
        found: files, and inputs that were typed, in order.
        whole: extensions of files that are one input each; then a line of text names such a file.

    Raises:
        UserError: a file has no input, or is no table.
    """
    for file in found:
        if isinstance(file, Input):
            yield file
            continue
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
    return parse_text(line, f"line {number}", whole)


def parse_text(text: str, place: str, whole: Set[str] = frozenset()) -> Input:
    """The same of any text."""
    given = parse_object(text, place) if text.lstrip().startswith("{") else _plain(text, whole)
    return Input(given=given, place=place)


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
