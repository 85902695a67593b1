"""The user's own tagged sentences."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from txtrain.data import files
from txtrain.data.tables import read_table
from txtrain.data.tagged import Sentence, TaggedText
from txtrain.errors import UserError

KINDS = (".jsonl", ".conll")


class TaggedFiles(TaggedText):
    """Sentences from .jsonl, with a list of words and one of tags in each line, or from .conll, with a word and at the
    line's end its tag in each line, and an empty line between sentences.

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
        return found | {"tokens": self.tokens, "tags": self.tags}

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
    words: list[str] = []
    tags: list[str] = []
    with files.readable(file), files.open_file(file) as stream:
        lines = stream.read().decode("utf-8").splitlines()
    first = 1
    for number, line in enumerate([*lines, ""], start=1):
        columns = line.split()
        if columns and columns[0] != "-DOCSTART-":
            if len(columns) < 2:
                raise UserError(f"{file} line {number} is {line.strip()}: give a word and its tag in each line")
            first = number if not words else first
            words.append(columns[0])
            tags.append(columns[-1])
        elif words:
            yield sentence(words, tags, f"{file} line {first}")
            words, tags = [], []
