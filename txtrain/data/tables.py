"""Tables: rows with named columns, from .jsonl, .csv and .tsv."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from txtrain.data import files
from txtrain.data.csv_rows import split_csv
from txtrain.data.lines import Line, decode, split_lines, whole_lines
from txtrain.data.long_text import Text, text_in
from txtrain.errors import UserError

KINDS = (".jsonl", ".csv", ".tsv")


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
    for place, names, row in _read_rows(file):
        yield place, {name: decode(cell, place) for name, cell in zip(names, row, strict=True)}


def read_column(file: Path, field: str) -> Iterator[tuple[str, Text]]:
    """One column of a .csv or .tsv file, and where each row is, in words.

    Raises:
        UserError: a row has other columns than the first line names, or that names no such column.
    """
    for place, names, row in _read_rows(file):
        if field not in names:
            raise UserError(f"{file} has no column {field}: set data.field to one of {', '.join(names)}")
        yield place, text_in(row[names.index(field)], place)


def _read_rows(file: Path) -> Iterator[tuple[str, list[str], list[Line]]]:
    """Where each row of .csv or .tsv is, in words, the names of the columns, and its fields."""
    with files.readable(file), files.open_file(file) as stream:
        if files.kind(file) == ".tsv":
            rows: Iterator[tuple[str, list[Line]]] = (
                (f"{file} line {number}", list(line.split(b"\t"))) for number, line in split_lines(stream, file) if line
            )
        else:
            rows = split_csv(whole_lines(stream, file), file)
        place, first = next(rows, ("", []))
        names = [decode(name, place) for name in first]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"{file} has the column {twice} twice: give each column another name in its first line")
        for place, row in rows:
            if len(row) != len(names):
                raise UserError(
                    f"{place} has {len(row)} columns and the first line has {len(names)}, {', '.join(names)}: "
                    "give each line the same"
                )
            yield place, names, row
            for cell in row:
                if isinstance(cell, bytearray):  # it may be long, and nobody needs it when the next row is read
                    cell.clear()


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
