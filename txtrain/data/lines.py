"""Lines of files of text, for whoever reads them: training, evaluation, predictions and prompts.

A line ends at a line feed, with or without a carriage return before it, and at nothing else: U+2028, a form feed and a
lone carriage return are characters of it. A byte order mark at the beginning of a file is not part of its text.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from txtrain.errors import UserError

MARK = b"\xef\xbb\xbf"


def whole_lines(stream: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a file, each with its end."""
    for number, line in enumerate(stream):
        yield line if number else line.removeprefix(MARK)


def split_lines(stream: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, without their ends."""
    for number, line in enumerate(whole_lines(stream), start=1):
        yield number, line[:-2] if line.endswith(b"\r\n") else line.removesuffix(b"\n")


def decode(line: bytes, place: str) -> str:
    """A line as text.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 text (byte {error.start}): give text, or convert it to UTF-8") from None


def parse_json(line: bytes | str, place: str) -> Any:
    """What a line of JSON holds.

    Raises:
        UserError: it is none.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}): give one JSON object per line") from None


def parse_object(line: bytes | str, place: str) -> dict[str, Any]:
    """The object in a line of JSON.

    Raises:
        UserError: it is none.
    """
    row = parse_json(line, place)
    if not isinstance(row, dict):
        raise UserError(f"{place} is {type(row).__name__}, not an object: give one JSON object per line")
    return row
