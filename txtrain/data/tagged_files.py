"""The user's own tagged sentences."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from txtrain.data import files
from txtrain.data.tables import read_table
from txtrain.data.tagged import Sentence, TaggedText
from txtrain.errors import UserError

KINDS = (".jsonl", ".conll")
BLANKS = re.compile(r"[ \t]+")
# Spaces in a word before a tab, comments, and what else once ended a line or a word.
OTHERWISE = re.compile(
    rb"\A\xef\xbb\xbf|^#|[^\n\t] [^\n\t]*\t|[\x0b\x0c\x1c-\x1f]|\xc2[\x85\xa0]|\xe1\x9a\x80|"
    rb"\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80|\r[^\n]",
    re.MULTILINE,
)


class TaggedFiles(TaggedText):
    """Sentences from .jsonl, with a list of words and one of tags in each line, or from .conll, with a word and at the
    line's end its tag in each line, and an empty line between sentences. With tabs in a file these part its columns, so
    that a word may have spaces in it. A line that begins with # is a comment, unless another line has as many columns
    and that tag.

    Args:
        path: such files, a folder or a glob of them, or a list.
        validation_path: files to validate on. Default: `validation_fraction` of the sentences in `path`.
        tokens: the field of .jsonl with the words.
        tags: the field of .jsonl with the tags.
        base: as in `TaggedText`.
    """

    def __init__(
        self,
        *,
        path: str | list[str],
        validation_path: str | list[str] | None = None,
        tokens: str = "tokens",
        tags: str = "tags",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.path, self.validation_path, self.tokens, self.tags = path, validation_path, tokens, tags

    def identity(self) -> Any:
        found: dict[str, Any] = {"files": files.state(self._files("path"))}
        if self.validation_path is not None:
            found["validation_files"] = files.state(self._files("validation_path"))
        options = ("path", "validation_path") if self.validation_path is not None else ("path",)
        plain = [file for option in options for file in self._files(option) if files.kind(file) != ".jsonl"]
        return found | {"tokens": self.tokens, "tags": self.tags} | files.read_anew(plain, OTHERWISE)

    def sentences(self) -> Iterator[Sentence]:
        return self._read("path")

    def validation_sentences(self) -> Iterator[Sentence] | None:
        return None if self.validation_path is None else self._read("validation_path")

    def _files(self, option: str) -> list[Path]:
        return files.find_files(getattr(self, option), f"data.{option}", kinds=KINDS, also=(".txt", ".tsv"))

    def _read(self, option: str) -> Iterator[Sentence]:
        for file in self._files(option):
            if files.kind(file) != ".jsonl":
                yield from _read_conll(file)
                continue
            for place, row in read_table(file):
                words, tags = (_list(row, field, place) for field in (self.tokens, self.tags))
                yield sentence(words, [str(tag) for tag in tags], place)

    def _named(self) -> str:
        return f"data.path={self.path}"


def sentence(words: list[Any], tags: list[str], place: str) -> Sentence:
    """A sentence of words that spaces stand between.

    Raises:
        UserError: it has none, or there are more or fewer tags than words.
    """
    if not words:
        raise UserError(f"{place} has no word: remove it")
    if len(words) != len(tags):
        raise UserError(f"{place} has {len(words)} words and {len(tags)} tags: give one tag to each word")
    if not all(isinstance(word, str) and word.strip() for word in words):
        raise UserError(f"{place} has a word that is empty or no text: remove it and its tag")
    return Sentence(words=spaced(words), tags=tags, place=place)


def spaced(words: list[str]) -> list[str]:
    """Each word with the space before it; before the first one too, as byte-level tokenizers like it."""
    return [f" {word}" for word in words]


def _list(row: dict[str, Any], field: str, place: str) -> list[Any]:
    if not isinstance(row.get(field), list):
        raise UserError(f"{place} has no list {field} (it has {', '.join(row)}): set data.tokens and data.tags")
    found: list[Any] = row[field]
    return found


def _read_conll(file: Path) -> Iterator[Sentence]:
    lines = list(files.read_lines(file))
    tabs = any("\t" in line for _, line in lines)
    rows = [(place, _columns(line, tabs=tabs)) for place, line in lines]
    others = [columns for _, columns in rows if columns and not columns[0].startswith("#")]
    known = {(len(columns), columns[-1]) for columns in others}
    words: list[str] = []
    tags: list[str] = []
    first = ""
    for place, columns in [*rows, ("", [])]:
        if columns and columns[0].startswith("#") and (len(columns), columns[-1]) not in known:
            continue
        if columns and not columns[0].startswith("-DOCSTART-"):
            if len(columns) < 2:
                by = ", a tab" if tabs else ""
                raise UserError(f"{place} is {columns[0]}: give a word{by} and its tag in each line")
            first = first if words else place
            words.append(columns[0])
            tags.append(columns[-1])
        elif words:
            yield sentence(words, tags, first)
            words, tags = [], []


def _columns(line: str, *, tabs: bool) -> list[str]:
    """The columns of a line; [] if it is blank."""
    if not line.strip():
        return []
    return [column.strip() for column in line.split("\t")] if tabs else BLANKS.split(line.strip(" \t\r"))
