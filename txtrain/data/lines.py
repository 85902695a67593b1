"""Lines of files of text, for whoever reads them: training, evaluation, predictions and prompts.

A line ends at a line feed, with or without a carriage return before it, and at nothing else: U+2028, a form feed and a
lone carriage return are characters of it. A byte order mark at the beginning of a file is not part of its text.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

from txtrain.errors import UserError

MARK = b"\xef\xbb\xbf"
LARGEST_CELL = 100 << 20  # bytes of a text in a line or a row
LARGEST_LINE = 2 * LARGEST_CELL  # in JSON a line end is two characters
BLOCK = 1 << 20  # bytes read at a time of a long line

Line = bytes | bytearray


def whole_lines(stream: BinaryIO, file: str | Path) -> Iterator[Line]:
    """The lines of a file, each with its end. A long one is emptied when the next is asked for, which frees its memory.

    Raises:
        UserError: one is longer than `LARGEST_LINE`.
    """
    for number in count(1):
        line: Line = stream.readline(BLOCK)
        if len(line) == BLOCK:
            line = _read_long(stream, bytearray(line), f"{file} line {number}")
        if not line:
            return
        if number == 1 and line.startswith(MARK):
            line = line.removeprefix(MARK)
        yield line
        if isinstance(line, bytearray):
            line.clear()


def _read_long(stream: BinaryIO, line: bytearray, place: str) -> bytearray:
    """The line that begins so, which takes little more memory than its length: `readline` alone would take twice it."""
    while not line.endswith(b"\n") and (more := stream.readline(BLOCK)):
        line += more
        if len(line) > LARGEST_LINE:
            raise UserError(
                f"{place} has more than {LARGEST_LINE >> 20} MiB, and a text in a table at most {LARGEST_CELL >> 20}: "
                "cut it into several, or give it as a .txt file"
            )
    return line


def split_lines(stream: BinaryIO, file: str | Path) -> Iterator[tuple[int, Line]]:
    """The lines of a file with their numbers, without their ends.

    Raises:
        UserError: one is longer than `LARGEST_LINE`.
    """
    for number, line in enumerate(whole_lines(stream, file), start=1):
        end = 2 if line.endswith(b"\r\n") else 1 if line.endswith(b"\n") else 0
        if isinstance(line, bytearray):
            del line[len(line) - end :]  # without a copy
            yield number, line
        else:
            yield number, line[: len(line) - end]


def decode(line: Line, place: str) -> str:
    """A line as text.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _no_text(place, error.start) from None


def decode_parts(blocks: Iterable[Line], place: str) -> Iterator[str]:
    """Bytes as text, block by block; a block may end within a character.

    Raises:
        UserError: it is not UTF-8.
    """
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    for block in chain(blocks, [b""]):
        before = read - len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _no_text(place, before + error.start) from None
        read += len(block)
        if text:
            yield text


def _no_text(place: str, byte: int) -> UserError:
    return UserError(f"{place} is not UTF-8 text (byte {byte}): give text, or convert it to UTF-8")


def parse_json(line: Line | str, place: str) -> Any:
    """What a line of JSON holds.

    Raises:
        UserError: it is none.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}): give one JSON object per line") from None


def parse_object(line: Line | str, place: str) -> dict[str, Any]:
    """The object in a line of JSON.

    Raises:
        UserError: it is none.
    """
    row = parse_json(line, place)
    if not isinstance(row, dict):
        raise UserError(f"{place} is {type(row).__name__}, not an object: give one JSON object per line")
    return row
