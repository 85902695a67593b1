"""Files of text: finding them, and reading the documents in them."""

import gzip
import io
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, cast

import zstandard

from txtrain.data.lines import MARK, decode, parse_json, split_lines
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
# A cut .gz is an EOFError; Arrow's errors are ValueErrors, of a column that `datasets` has no type for the last one.
READING_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError, ValueError, NotImplementedError)


def find_files(
    paths: str | list[str],
    key: str = "data.path",
    *,
    kinds: tuple[str, ...] = DOCUMENTS,
    also: tuple[str, ...] = PLAIN,
) -> list[Path]:
    """The files that paths, folders and globs name, sorted and without repeats.

    Args:
        paths: what the user typed.
        key: where.
        kinds: extensions that are meant, for which folders are searched.
        also: extensions that are taken where a path or a glob names them.
    """
    found: set[Path] = set()
    for path in [paths] if isinstance(paths, str) else paths:
        found.update(_expand(path, key, kinds))
    files = sorted(found)
    for file in files:
        if kind(file) not in (*kinds, *also):
            rename = ", or rename a text file to .txt" if ".txt" in kinds else ""
            raise UserError(
                f"{key}: {file} has the unknown extension {kind(file)}: give {', '.join(kinds)} "
                f"(or {', '.join(COMPRESSED)} of them){rename}"
            )
        if not file.is_file():
            raise UserError(f"{key}: {file} is no regular file, and it is read more than once: give a file")
        if not os.access(file, os.R_OK):
            raise UserError(f"{key}: {file} may not be read: give a file that you have the right to read")
    return files


def kind(file: Path) -> str:
    """The extension under any compression, in lower case."""
    return (Path(file.stem) if file.suffix in COMPRESSED else file).suffix.lower()


def state(files: list[Path]) -> list[tuple[str, int, int]]:
    """What tells that a file has changed."""
    stats = [(file, file.stat() if file.exists() else file.lstat()) for file in files]  # a link may lead nowhere
    return [(str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file, stat in stats]


BEGINS_WITH_MARK = re.compile(rb"\A" + MARK)


def read_anew(files: list[Path], otherwise: re.Pattern[bytes] = BEGINS_WITH_MARK) -> dict[str, int]:
    """For an identity: files that an earlier version read in another way get another name in the cache.

    Args:
        files: of text.
        otherwise: what was read in another way; by default the mark that a file may begin with.
    """
    most = len(MARK) if otherwise is BEGINS_WITH_MARK else -1

    def found(file: Path) -> bool:
        with readable(file), open_file(file) as stream:
            return otherwise.search(stream.read(most)) is not None

    return {"lines": 2} if any(map(found, files)) else {}


def walk(folder: Path) -> list[Path]:
    """All below a folder that is none itself, in order; what is hidden is passed over, as is what is in it."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found)


def read_documents(file: Path, field: str) -> Iterator[str]:
    """Documents of a file: a line of .jsonl, a row of .parquet, otherwise the whole file."""
    with readable(file):
        if kind(file) == ".jsonl":
            for place, content in _read_jsonl(file):
                yield _field(content, field, place)
        elif kind(file) == ".parquet":
            yield from _read_parquet(file, field)
        else:
            yield _read_text(file)


def read_jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    """The JSON of each line that is not empty, and where it is, in words."""
    with readable(file):
        yield from _read_jsonl(file)


def read_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Where each line of a text is, in words, and the line."""
    with readable(file), open_file(file) as stream:
        for number, line in split_lines(stream):
            place = f"{file} line {number}"
            yield place, decode(line, place)


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Around the reading of a file: what is wrong with it becomes one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}): give text, or convert it to UTF-8") from None
    except READING_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read ({reason}): give a whole {file.suffix or 'text'} file") from None


def _expand(path: str, key: str, kinds: tuple[str, ...]) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_dir():
        files = [file for file in walk(place) if file.is_file() and kind(file) in kinds]
        if not files:
            other = f" or a glob such as '{path}/**/*.py'" if ".txt" in kinds else ""  # any text will do
            raise UserError(f"{key}={path} has no {', '.join(kinds)} file: give a file{other}")
        return files
    if place.exists():
        return [place]
    files = [Path(name) for name in glob(str(place), recursive=True) if os.path.isfile(name)]
    if not files:
        raise UserError(f"{key}={path} does not exist: give a file, a folder or a glob (from {Path.cwd()})")
    return files


def open_file(file: Path) -> BinaryIO:
    if file.suffix == ".gz":
        return cast(BinaryIO, gzip.open(file, "rb"))
    if file.suffix == ".zst":
        return io.BufferedReader(zstandard.open(file, "rb"))
    return file.open("rb")


def _read_text(file: Path) -> str:
    # Not through `datasets`: its text builder turns "\r\n" and "\r" into "\n", whatever its options.
    with open_file(file) as stream:
        text = stream.read().removeprefix(MARK).decode("utf-8")
    if "\0" in text:
        raise UserError(f"{file} is binary, not text (a zero at character {text.index(chr(0))}): give a text file")
    return text


def _read_jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    # Not through `datasets`: its JSON builder guesses types from the first 10 MB, so that it fails where any field
    # first appears or changes its type after them, and its text builder ends lines at a lone "\r" too.
    with open_file(file) as stream:
        for number, line in split_lines(stream):
            if line.strip():
                place = f"{file} line {number}"
                yield place, parse_json(line, place)


def _read_parquet(file: Path, field: str) -> Iterator[str]:
    with _dataset(file) as rows:
        names = rows().column_names
        if field not in names:
            _field(dict.fromkeys(names), field, str(file))
        for number, row in enumerate(rows(columns=[field], batch_size=1000), start=1):
            yield _field(row, field, f"{file} row {number}")


@contextmanager
def _dataset(file: Path) -> Iterator[Callable[..., Any]]:
    """Makes streaming data sets of a Parquet file. Unlike `load_dataset` this asks no server to count the use."""
    import datasets  # here, since it takes seconds and the other sources do without

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what is wrong, a UserError says
    with TemporaryDirectory(prefix="txtrain-") as folder:  # for a lock file, and a name that is no pattern or URL
        path = Path(folder, f"file{kind(file)}")
        if file.suffix in COMPRESSED:
            # Parquet is read from its end, so it cannot be unpacked as it is read.
            with open_file(file) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
        else:
            path.symlink_to(file.absolute())
        yield partial(datasets.IterableDataset.from_parquet, str(path), cache_dir=folder)


def _field(row: Any, field: str, place: str) -> str:
    if not isinstance(row, dict):
        raise UserError(f"{place} is {type(row).__name__}, not an object: give one JSON object per line")
    if field not in row:
        raise UserError(f"{place} has no field {field}: set data.field to one of {', '.join(map(str, row))}")
    text = row[field]
    if not isinstance(text, str):
        raise UserError(f"{place}: field {field} is {type(text).__name__}, not text: set data.field to one that is")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):x}"
        raise UserError(f"{place}: field {field} has {code} alone, half of a character: remove it") from None
    return text
