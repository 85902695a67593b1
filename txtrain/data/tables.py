"""Tables: rows with named columns, from .jsonl, .csv and .tsv."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from txtrain.data import files
from txtrain.errors import UserError

KINDS = (".jsonl", ".csv", ".tsv")

csv.field_size_limit(2**31 - 1)  # a text may be longer than the 128 KiB that the module allows


def find_tables(paths: str | list[str], key: str = "data.path") -> list[Path]:
    """The tables that paths, folders and globs name."""
    return files.find_files(paths, key, kinds=KINDS, also=())


def read_table(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a table, and where it is, in words. The first line of .csv and .tsv names the columns.

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
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            reader = csv.DictReader(lines, delimiter="," if files.kind(file) == ".csv" else "\t", strict=True)
            for row in reader:
                place = f"{file} line {reader.line_num}"
                if None in row or None in row.values():
                    names = ", ".join(reader.fieldnames or ())
                    raise UserError(f"{place} has other columns than the first line, {names}: give each line the same")
                yield place, row
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
