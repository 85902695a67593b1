"""Tables: rows with named columns, from .jsonl, .csv and .tsv."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from txtrain.data import files
from txtrain.data.lines import decode, split_lines, whole_lines
from txtrain.errors import UserError

KINDS = (".jsonl", ".csv", ".tsv")

csv.field_size_limit(2**31 - 1)  # a text may be longer than the 128 KiB that the module allows


def find_tables(paths: str | list[str], key: str = "data.path") -> list[Path]:
    """The tables that paths, folders and globs name."""
    return files.find_files(paths, key, kinds=KINDS, also=())


def tables_read_anew(found: list[Path]) -> dict[str, int]:
    """For an identity: a quote mark in a .tsv was once no text."""
    return files.read_anew([file for file in found if files.kind(file) == ".tsv"], re.compile(b'"'))


def read_table(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a table, and where it is, in words. The first line of .csv and .tsv names the columns.

    A field of .csv may have quotes around it, and then line ends in it; in .tsv a quote mark is text.

    Raises:
        UserError: a row is not an object, or has other columns than the first line names.
    """
    if files.kind(file) == ".jsonl":
        for place, row in files.read_jsonl(file):
            if not isinstance(row, dict):
                raise UserError(f"{place} is {type(row).__name__}, not an object: give one JSON object per line")
            yield place, row
        return
    with files.readable(file), files.open_file(file) as stream:
        rows = _split(stream, file) if files.kind(file) == ".tsv" else _unquote(stream, file)
        _, names = next(rows, ("", []))
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{file} has the column {twice} twice: give each column another name in its first line")
        for place, row in rows:
            if len(row) != len(names):
                raise UserError(
                    f"{place} has {len(row)} columns and the first line has {len(names)}, {', '.join(names)}: "
                    "give each line the same"
                )
            yield place, dict(zip(names, row, strict=True))


def _split(stream: Iterable[bytes], file: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Columns between tabs."""
    for number, line in split_lines(stream):
        if line:
            place = f"{file} line {number}"
            yield place, decode(line, place).split("\t")


def _unquote(stream: Iterable[bytes], file: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Columns between commas."""
    lines = enumerate(whole_lines(stream), start=1)
    reader = csv.reader((decode(line, f"{file} line {number}") for number, line in lines), strict=True)
    try:
        for row in reader:
            if row:
                yield f"{file} line {reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{file} line {reader.line_num} cannot be read ({error}): give a whole table") from None


def text_field(row: Mapping[str, Any], field: str, key: str, place: str) -> str:
    """A column of a row that holds text.

    Args:
        row: of a table.
        field: the column's name.
        key: the override that names it, such as `data.text`.
        place: where the row is.
    """
    if field not in row:
        raise UserError(f"{place} has no {field}: set {key} to one of {', '.join(map(str, row))}")
    value = row[field]
    if not isinstance(value, str):
        raise UserError(f"{place}: {field} is {type(value).__name__}, not text: set {key} to a column that is")
    return value


def label_field(row: Mapping[str, Any], field: str, key: str, place: str) -> str:
    """A column of a row that holds the name or number of a class."""
    if field not in row:
        raise UserError(f"{place} has no {field}: set {key} to one of {', '.join(map(str, row))}")
    value = row[field]
    if isinstance(value, bool | int):
        return str(value).lower()
    if not isinstance(value, str) or not value.strip():
        got = "nothing" if value is None or value == "" else repr(value)
        raise UserError(f"{place}: {field} is {got}, not a label: give a name or a whole number")
    return value.strip()
