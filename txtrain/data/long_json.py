"""Lines of JSON with strings of many megabytes: these are decoded in parts, whenever they are read."""

import re
from collections.abc import Iterator
from functools import partial
from secrets import token_hex
from typing import Any

from txtrain.data.lines import Line, decode_parts, parse_json
from txtrain.data.long_text import PART, SHORT, LongText, check_there
from txtrain.errors import UserError

# What a string is made of, so that it is not cut within an escape, or within two that stand for one character.
_WHOLE = re.compile(
    rb"(?:[^\\]+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\[^u])*"
)


def parse_long(line: Line, place: str) -> Any:
    """What a line of JSON holds; long strings of an object are `LongText`.

    Raises:
        UserError: it is none.
    """
    if len(line) <= SHORT:
        return parse_json(line, place)
    name, kept, at = token_hex(16), bytearray(), 0
    found: dict[str, LongText] = {}
    for start, end in _strings(line, place):
        if end - start > SHORT:
            found[f"{name}{len(found)}"] = LongText(partial(_decode, line, len(line), start, end, place))
            kept += line[at:start] + f"{name}{len(found) - 1}".encode()
            at = end
    if not found:
        return parse_json(line, place)
    row = parse_json(kept + line[at:], place)
    if not isinstance(row, dict):
        return row
    return {key: found.get(value, value) if isinstance(value, str) else value for key, value in row.items()}


def _strings(line: Line, place: str) -> Iterator[tuple[int, int]]:
    """Where the strings in a line start and end, without their quotes."""
    start = line.find(b'"') + 1
    while start:
        end = line.find(b'"', start)
        while end >= 0 and _escaped(line, end):
            end = line.find(b'"', end + 1)
        if end < 0:
            raise UserError(f"{place} is not JSON (a string has no end): give one JSON object per line")
        yield start, end
        start = line.find(b'"', end + 1) + 1


def _escaped(line: Line, at: int) -> bool:
    """Whether an odd number of backslashes stands before it."""
    first = at
    while first and line[first - 1] == ord("\\"):
        first -= 1
    return (at - first) % 2 == 1


def _decode(line: Line, size: int, start: int, stop: int, place: str) -> Iterator[str]:
    check_there(line, size)
    for text in decode_parts(_blocks(line, start, stop, place), place):
        yield str(parse_json(f'"{text}"', place))


def _blocks(line: Line, start: int, stop: int, place: str) -> Iterator[Line]:
    while start < stop:
        match = _WHOLE.match(line, start, min(start + PART, stop))
        end = match.end() if match is not None else start
        if end == start:
            code = line[start : start + 6].decode(errors="replace")
            raise UserError(f"{place} has {code}, which is no character: remove it")
        yield line[start:end]
        start = end
