"""Files of text: finding them, and reading their lines."""

import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from txtrain.data.lines import MARK, Line, decode, parse_json, split_lines
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


def read_jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    """The JSON of each line that is not empty, and where it is, in words."""
    # Not through `datasets`: its JSON builder guesses types from the first 10 MB, so that it fails where any field
    # first appears or changes its type after them, and its text builder ends lines at a lone "\r" too.
    for place, line in json_lines(file):
        yield place, parse_json(line, place)


def json_lines(file: Path) -> Iterator[tuple[str, Line]]:
    """Each line that is not empty, and where it is, in words."""
    with readable(file), open_file(file) as stream:
        for number, line in split_lines(stream, file):
            if line and not line.isspace():
                yield f"{file} line {number}", line


def read_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Where each line of a text is, in words, and the line."""
    with readable(file), open_file(file) as stream:
        for number, line in split_lines(stream, file):
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
