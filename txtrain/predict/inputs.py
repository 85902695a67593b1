"""Inputs of a prediction: typed texts, files that are one each, lines of files, and lines of standard input."""

import os
import re
import shlex
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
    """The files that paths, folders and globs name, in order; other words are texts, or JSON objects.

    Args:
        words: what the user typed.
        whole: extensions of files that are one input each; then no word is a text.

    Raises:
        UserError: a word is empty, or looks like a path that does not exist, or a file is of no known kind.
    """
    found, known = list[Path | Input](), {*whole, *ROWS}
    for word in words:
        if not word.strip():
            raise UserError("an input is empty: give a text, a file, a folder, a glob, or - for standard input")
        path = Path(os.path.expanduser(word))
        exists = os.path.lexists(path)
        typed = f"; if it is a text, type --text {shlex.quote(word)}"
        if not exists and not whole and word.lstrip().startswith("{"):
            try:
                found.append(Input(given=parse_object(word, "the input"), place="the input"))
            except UserError as error:
                raise UserError(f"{error}{typed}") from error
            continue
        if os.path.isdir(path):
            wanted = whole or known
            files = [file for file in walk(path) if _kind(file) in wanted and (_kind(file) in whole or file.is_file())]
        else:
            files = [path] if exists else sorted(map(Path, glob(str(path), recursive=True)))
        if not files and not exists and not whole and not _looks_like_path(word):
            found.append(as_text(word, whole))
            continue
        if not files:
            reason = "has no input" if exists else "does not exist"
            text = "" if exists or whole else typed
            raise UserError(f"{word} {reason}: give a file, a folder, a glob, or - for lines of standard input{text}")
        for file in files:
            if _kind(file) not in known:
                raise UserError(f"{file} has the unknown extension {file.suffix}: give {', '.join(sorted(known))}")
        found += files
    return found


def as_text(text: str, whole: Set[str]) -> Input:
    """A text that was typed.

    Raises:
        UserError: it is empty, or the model reads files.
    """
    if whole:
        raise UserError(f"--text is for models of text: give a file of {', '.join(sorted(whole))}")
    if not text.strip():
        raise UserError("--text is empty: give a text")
    return Input(given=text, place="the text")


def _looks_like_path(word: str) -> bool:
    """One word with a slash, a star or an extension, or several that begin or end as only paths do."""
    if re.search(r"^(~|\.{1,2})?/|/\*|\.(jsonl|csv|tsv|txt)(\.\w+)?$", word, re.IGNORECASE):
        return True
    return re.search(r"\s", word) is None and re.search(r"^~|[/\\*]|\.[A-Za-z]\w{1,5}$", word) is not None


def count_inputs(found: Sequence[Path | Input], whole: Set[str]) -> int:
    """About how many inputs there are, for a progress bar: of text and tables, the lines."""
    return sum(1 if isinstance(item, Input) or _kind(item) in whole else _count_lines(item) for item in found)


def _count_lines(file: Path) -> int:
    if not file.is_file():  # a pipe can be read once
        return 1
    try:
        with open_file(file) as stream:
            return max(1, sum(chunk.count(b"\n") for chunk in iter(partial(stream.read, 2**20), b"")))
    except (OSError, EOFError, ValueError, RuntimeError):  # the reader reports it
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
