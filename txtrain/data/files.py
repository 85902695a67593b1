"""Files of text: finding them, and reading the documents in them."""

import gzip
import io
import json
import os
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from txtrain.errors import UserError

DOCUMENTS = (".txt", ".md", ".jsonl", ".parquet")
# Read as plain text where a path or a glob names them; a folder is searched for DOCUMENTS only.
# fmt: off
PLAIN = (
    ".txt", ".md", ".text", ".rst", ".tex", ".html", ".xml", ".css", ".yaml", ".yml", ".toml", ".ini", ".log", ".sh",
    ".sql", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".js", ".ts", ".rb", "",
)
# fmt: on
COMPRESSED = (".gz", ".zst")


def find_files(paths: str | list[str], key: str = "data.path") -> list[Path]:
    """The files that paths, folders and globs name, sorted and without repeats."""
    found: set[Path] = set()
    for path in [paths] if isinstance(paths, str) else paths:
        found.update(_expand(path, key))
    files = sorted(found)
    for file in files:
        if kind(file) not in (*DOCUMENTS, *PLAIN):
            raise UserError(
                f"{key}: {file} has the unknown extension {kind(file)}: give {', '.join(DOCUMENTS)} "
                f"(or {', '.join(COMPRESSED)} of them), or rename a text file to .txt"
            )
        if not os.access(file, os.R_OK):
            raise UserError(f"{key}: {file} may not be read: give a file that you have the right to read")
    return files


def kind(file: Path) -> str:
    """The extension under any compression, in lower case."""
    return (Path(file.stem) if file.suffix in COMPRESSED else file).suffix.lower()


def state(files: list[Path]) -> list[tuple[str, int, int]]:
    """What tells that a file has changed."""
    stats = [(file, file.stat()) for file in files]
    return [(str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


def read_documents(file: Path, field: str) -> Iterator[str]:
    """Documents of a file: a line of .jsonl, a row of .parquet, otherwise the whole file."""
    try:
        if kind(file) == ".jsonl":
            yield from _read_jsonl(file, field)
        elif kind(file) == ".parquet":
            yield from _read_parquet(file, field)
        else:
            yield _read_text(file)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}): give text, or convert it to UTF-8") from None
    except (OSError, EOFError, zstandard.ZstdError) as error:  # a truncated .gz is an EOFError
        raise UserError(f"{file} cannot be read ({error}): give a whole {file.suffix or 'text'} file") from None


def _expand(path: str, key: str) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_dir():
        files = [file for file in place.rglob("*") if file.is_file() and kind(file) in DOCUMENTS]
        if not files:
            raise UserError(
                f"{key}={path} has no {', '.join(DOCUMENTS)} file: give a file or a glob such as '{path}/**/*.py'"
            )
        return files
    if place.exists():
        return [place]
    files = [Path(name) for name in glob(str(place), recursive=True) if os.path.isfile(name)]
    if not files:
        raise UserError(f"{key}={path} does not exist: give a file, a folder or a glob (from {Path.cwd()})")
    return files


def _open(file: Path) -> BinaryIO:
    if file.suffix == ".gz":
        return cast(BinaryIO, gzip.open(file, "rb"))
    if file.suffix == ".zst":
        return io.BufferedReader(zstandard.open(file, "rb"))
    return file.open("rb")


def _read_text(file: Path) -> str:
    with _open(file) as stream:
        text = stream.read().decode("utf-8")
    if "\0" in text:
        raise UserError(f"{file} is binary, not text (a zero at character {text.index(chr(0))}): give a text file")
    return text


def _read_jsonl(file: Path, field: str) -> Iterator[str]:
    with _open(file) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{file} line {number} is not JSON ({error}): give one JSON object per line") from None
            yield _field(row, field, f"{file} line {number}")


def _read_parquet(file: Path, field: str) -> Iterator[str]:
    import pyarrow.parquet

    with _open(file) as stream:
        source = stream if file.suffix not in COMPRESSED else io.BytesIO(stream.read())
        try:
            table = pyarrow.parquet.ParquetFile(source)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{file} is not Parquet ({error}): give a whole .parquet file") from None
        if field not in table.schema_arrow.names:
            _field(dict.fromkeys(table.schema_arrow.names), field, str(file))
        row = 0
        for batch in table.iter_batches(columns=[field]):
            for value in batch.column(0).to_pylist():
                row += 1
                yield _field({field: value}, field, f"{file} row {row}")


def _field(row: Any, field: str, place: str) -> str:
    if not isinstance(row, dict):
        raise UserError(f"{place} is {type(row).__name__}, not an object: give one JSON object per line")
    if field not in row:
        raise UserError(f"{place} has no field {field}: set data.field to one of {', '.join(map(str, row))}")
    if not isinstance(row[field], str):
        kind_found = type(row[field]).__name__
        raise UserError(f"{place}: field {field} is {kind_found}, not text: set data.field to one that is")
    return row[field]
