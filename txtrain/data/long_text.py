"""Documents that are read in parts, since the whole may be larger than memory."""

from collections.abc import Callable, Iterator
from functools import partial

from txtrain.data.lines import Line, decode, decode_parts

PART = 1 << 20  # characters or bytes that are read at a time
SHORT = 4 * PART  # a text of so many bytes is held in memory as a whole


class LongText:
    """A document of any length. It is read from its beginning whenever it is iterated.

    Args:
        read: gives its parts, the same ones whenever it is called.
        start, stop: characters of those parts that are the document; a stop of None is the end.
    """

    def __init__(self, read: Callable[[], Iterator[str]], start: int = 0, stop: int | None = None) -> None:
        self._read, self._start, self._stop = read, start, stop

    def __iter__(self) -> Iterator[str]:
        at = 0
        for part in self._read():
            end = at + len(part) if self._stop is None else min(at + len(part), self._stop)
            begin = max(at, self._start)
            if begin < end:
                yield part[begin - at : end - at]
            at += len(part)
            if self._stop is not None and at >= self._stop:
                return

    def slice(self, start: int, stop: int | None = None) -> "LongText":
        """Some of its characters, counted from its beginning."""
        ends = [end for end in (self._stop, None if stop is None else self._start + stop) if end is not None]
        return LongText(self._read, self._start + start, min(ends, default=None))


Text = str | LongText
"""A document, in memory or not."""


def text_in(content: Line | memoryview, place: str) -> Text:
    """Bytes of UTF-8 as a text. A long one is decoded in parts: in memory a character may take four times its bytes.

    Rows of a file free the memory of a long one when the next is read, and it can be read no more.

    Raises:
        UserError: it is not UTF-8, which of a long text is noticed where it is read.
    """
    if len(content) <= SHORT:
        return decode(bytes(content), place)
    return LongText(partial(_decode, content, len(content), place))


def _decode(content: Line | memoryview, size: int, place: str) -> Iterator[str]:
    check_there(content, size)
    return decode_parts((bytes(content[start : start + PART]) for start in range(0, size, PART)), place)


def check_there(content: Line | memoryview, size: int) -> None:
    """Where a text is read too late, that is our mistake."""
    if len(content) != size:
        raise RuntimeError("a long text can be read only until the next one is")


def parts_of(text: Text) -> Iterator[str]:
    """A text in parts of at most about `PART` characters, at least one of them."""
    if isinstance(text, LongText):
        yield from text
    else:
        for start in range(0, max(1, len(text)), PART):
            yield text[start : start + PART]


def part_of(text: Text, start: int, stop: int | None = None) -> Text:
    """Some characters of a text."""
    return text[start:stop] if isinstance(text, str) else text.slice(start, stop)


def beginning(text: Text, characters: int) -> str:
    """The first characters of a text."""
    return "".join(parts_of(part_of(text, 0, characters)))
