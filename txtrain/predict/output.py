"""Where predictions go: lines of JSON as they come, or a table."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol, TextIO

from txtrain.errors import UserError

TABLE = ".csv"


class Output(Protocol):
    """Takes what is said of each input, in order."""

    def write(self, record: Mapping[str, Any]) -> None: ...


class Lines:
    """A line of JSON for each input, at once.

    Args:
        stream: where they go.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, record: Mapping[str, Any]) -> None:
        print(json.dumps(record, ensure_ascii=False), file=self.stream, flush=True)


class Table:
    """A row of CSV for each input, written at the end: only then are all columns known. Memory holds one row.

    A text stands as it is, all else as JSON, and null and what a row does not have as an empty field.

    Args:
        stream: where the rows wait.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.columns: dict[str, None] = {}

    def write(self, record: Mapping[str, Any]) -> None:
        self.columns |= dict.fromkeys(record)
        print(json.dumps(record, ensure_ascii=False), file=self.stream)

    def end(self, file: TextIO) -> None:
        """Writes the whole table."""
        columns = [name for name in self.columns if name != "error"] + ["error"] * ("error" in self.columns)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        self.stream.seek(0)
        for line in self.stream:
            row = json.loads(line)
            writer.writerow([_field(row.get(name)) for name in columns])


def _field(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@contextmanager
def opened(path: Path | None) -> Iterator[Output]:
    """The output that `--output` names: a table if it ends in .csv, else lines of JSON; None is standard output.

    Raises:
        UserError: it cannot be written, or has the name of a table of another kind.
    """
    if path is None:
        yield Lines(sys.stdout)
        return
    if path.suffix.lower() in (".tsv", ".parquet", ".xlsx"):
        raise UserError(f"--output {path} would be a table of {path.suffix}: give a name in .csv, or .jsonl for JSON")
    try:
        file = path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written ({error.strerror}): name another file") from error
    with file:
        if path.suffix.lower() != TABLE:
            yield Lines(file)
            return
        with TemporaryFile("w+", encoding="utf-8", newline="") as waiting:
            table = Table(waiting)
            try:
                yield table
            finally:
                table.end(file)
