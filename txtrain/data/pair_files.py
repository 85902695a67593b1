"""The user's own pairs of texts: a file with both sides in each line, or two files whose lines belong together."""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from txtrain.data import files
from txtrain.data.parallel import Pair
from txtrain.data.translation import TranslationData
from txtrain.errors import UserError


class PairFiles(TranslationData):
    """Files of pairs, also compressed.

    Args:
        path: a .tsv file, whose first two columns are source and target, a .jsonl or .parquet file with a field for
            each, a folder, glob or list of them; with `target_path` a text file of sources.
        target_path: a text file of targets, line by line those of `path`.
        source_field, target_field: of .jsonl; in `translation.en` what comes after a dot is a field of a field.
        validation_path, validation_target_path: pairs to validate on. Default: `validation_fraction` of those above.
        base: as in `TranslationData`.
    """

    def __init__(
        self,
        *,
        path: str | list[str],
        target_path: str | None = None,
        source_field: str = "source",
        target_field: str = "target",
        validation_path: str | list[str] | None = None,
        validation_target_path: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.path, self.target_path = path, target_path
        self.source_field, self.target_field = source_field, target_field
        self.validation_path, self.validation_target_path = validation_path, validation_target_path
        if validation_path is None and validation_target_path is not None:
            raise UserError("data.validation_target_path has no sources: set data.validation_path too")

    def identity(self) -> Any:
        names = ("path", "target_path", "validation_path", "validation_target_path")
        given: dict[str, Any] = {
            name: files.state(self._find(name)) for name in names if getattr(self, name) is not None
        }
        found = [file for name in given for file in self._find(name) if files.kind(file) != ".jsonl"]
        return given | {"fields": [self.source_field, self.target_field]} | files.read_anew(found)

    def pairs(self) -> Iterator[Pair]:
        return self._read("path", "target_path")

    def validation_pairs(self) -> Iterator[Pair] | None:
        return None if self.validation_path is None else self._read("validation_path", "validation_target_path")

    def _find(self, name: str) -> list[Path]:
        path = getattr(self, name)
        # A file that is named may be of any kind; what a folder or glob has is searched for.
        if isinstance(path, str) and Path(path).expanduser().is_file():
            return [Path(path).expanduser()]
        return files.find_files(path, key=f"data.{name}")

    def _read(self, source: str, target: str) -> Iterator[Pair]:
        found = self._find(source)
        if getattr(self, target) is not None:
            targets = self._find(target)
            if len(found) != 1 or len(targets) != 1:
                raise UserError(f"data.{source} and data.{target} are lines of one file each: name two files")
            yield from read_parallel(found[0], targets[0])
            return
        for file in found:
            if files.kind(file) == ".jsonl":
                for place, row in files.read_jsonl(file):
                    source_text, target_text = (
                        text_in(row, name, place, key)
                        for name, key in ((self.source_field, "source"), (self.target_field, "target"))
                    )
                    yield Pair(source_text, target_text, place)
            elif files.kind(file) in (".tsv", ".txt"):
                yield from read_columns(file)
            else:
                raise UserError(
                    f"data.{source}: {file} holds no pairs: give .tsv or .jsonl, or the targets' file as data.{target}"
                )

    def _named(self) -> str:
        return f"data.path={self.path}"


def read_columns(file: Path) -> Iterator[Pair]:
    """The first two columns of each line that is not blank, with tabs between columns."""
    for place, line in files.read_lines(file):
        if line.strip():
            columns = line.split("\t")
            if len(columns) < 2:
                raise UserError(f"{place} has no tab: give source, tab, target in each line")
            yield Pair(columns[0].strip(), columns[1].strip(), place)


def read_parallel(source: Path, target: Path) -> Iterator[Pair]:
    """The lines of two files that have equally many."""
    counts = [0, 0]
    for one, other in zip_longest(files.read_lines(source), files.read_lines(target)):
        counts = [count + (line is not None) for count, line in zip(counts, (one, other), strict=True)]
        if one is not None and other is not None:
            yield Pair(one[1].strip(), other[1].strip(), one[0])
    if counts[0] != counts[1]:
        raise UserError(
            f"{source} has {counts[0]} lines and {target} has {counts[1]}: give two files whose lines belong together"
        )


def text_in(row: Any, field: str, place: str, side: str) -> str:
    """The text in a field of a row, or in a field of a field."""
    value = row
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise UserError(f"{place} has no field {field} ({there}): set data.{side}_field to the one with the {side}")
        value = value[name]
    if not isinstance(value, str):
        raise UserError(f"{place}: field {field} is {type(value).__name__}, not text: set data.{side}_field to one")
    return value.strip()
