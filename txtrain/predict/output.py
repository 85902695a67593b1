"""Where predictions go: lines of JSON as they come, or a table."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol, TextIO

from txtrain.errors import UserError

TABLE = ".csv"
OTHER_TABLES = (".tsv", ".parquet", ".xlsx")


class Output(Protocol):
    """Writes the record of each input, in order."""

    def write(self, record: Mapping[str, Any]) -> None: ...


class Lines:
    """A line of JSON for each input, written at once.

    Args:
        stream: takes the lines.
        path: of the file that the user named; None is standard output.
    """

    def __init__(self, stream: TextIO, path: Path | None = None) -> None:
        self.stream, self.path = stream, path

    def write(self, record: Mapping[str, Any]) -> None:
        with _writing(self.path):
            print(as_json(record), file=self.stream, flush=True)


class Table:
    """A row of CSV for each input. It is written at the end, when all columns are known; until then rows wait on disk.

    Text stands as it is, other values as JSON, null and missing values as empty fields. `error` is the last column.

    Args:
        rows: holds the rows until the end.
        path: of the table.
    """

    def __init__(self, rows: TextIO, path: Path) -> None:
        self.rows, self.path = rows, path
        self.columns: dict[str, None] = {}

    def write(self, record: Mapping[str, Any]) -> None:
        self.columns |= dict.fromkeys(record)
        with _writing(self.path):
            print(as_json(record), file=self.rows)

    def finish(self, file: TextIO) -> None:
        """Write the whole table."""
        columns = sorted(self.columns, key="error".__eq__)
        if not columns:
            return
        with _writing(self.path):
            writer = csv.writer(file)  # RFC 4180: lines end in \r\n, so that a lone \r in a field is quoted too
            writer.writerow(columns)
            self.rows.seek(0)
            for line in self.rows:
                row = json.loads(line)
                writer.writerow([_field(row.get(name)) for name in columns])


def as_json(value: Any) -> str:
    """Readable JSON; half a surrogate pair, which no file can hold, stays escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return text if is_unicode(text) else json.dumps(value)


def is_unicode(text: str) -> bool:
    """False with half a surrogate pair, Python's form of bytes that are not UTF-8 and of JSON's \\ud800."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _field(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) and is_unicode(value) else as_json(value)


@contextmanager
def open_output(path: Path | None, inputs: Sequence[object] = ()) -> Iterator[Output]:
    """The output that `--output` names: a table if it ends in .csv, else lines of JSON; None is standard output.

    Args:
        path: the file, which is overwritten.
        inputs: paths among them are files that are still to be read.

    Raises:
        UserError: it cannot be written, is one of the inputs, or has the name of a table that is not CSV.
    """
    if path is None:
        yield Lines(sys.stdout)
        return
    if path.suffix.lower() in OTHER_TABLES:
        raise UserError(f"--output {path}: {path.suffix} cannot be written: name a .csv file, or .jsonl for JSON")
    if any(path.is_file() and item.exists() and path.samefile(item) for item in inputs if isinstance(item, Path)):
        raise UserError(f"--output {path} is one of the inputs, which it would overwrite: name another file")
    with _writing(path):
        file = path.open("w", encoding="utf-8", newline="")
    try:
        if path.suffix.lower() != TABLE:
            yield Lines(file, path)
            return
        with TemporaryFile("w+", encoding="utf-8", newline="") as rows:
            table = Table(rows, path)
            try:
                yield table
            finally:
                table.finish(file)
    finally:
        with _writing(path):
            file.close()


@contextmanager
def _writing(path: Path | None) -> Iterator[None]:
    """An error of the user's file as one line; those of standard output are told where all commands end."""
    try:
        yield
    except OSError as error:
        if path is None:
            raise
        raise UserError(f"--output {path} cannot be written ({error.strerror}): name another file") from error
