"""Rows of .csv as bytes, as Python's strict `csv.reader` parts them, which takes four bytes of memory a character.

A field may have quotes around it. Then commas and line ends in it are text, and a quote mark is written twice.
"""

from collections.abc import Iterator
from pathlib import Path

from txtrain.data.lines import LARGEST_CELL, Line
from txtrain.errors import UserError


def split_csv(lines: Iterator[Line], file: Path) -> Iterator[tuple[str, list[Line]]]:
    """Where each row is, in words, and its fields; empty lines are none.

    Args:
        lines: of the file, with their ends.
        file: that they are from.

    Raises:
        UserError: they are no table, or a field is too long.
    """
    reader = _Reader(lines, file)
    while (row := reader.row()) is not None:
        if row:
            yield reader.place, row


class _Reader:
    def __init__(self, lines: Iterator[Line], file: Path) -> None:
        self._lines, self._file, self._number = lines, file, 0
        self._line: Line = b""
        self._at = 0

    @property
    def place(self) -> str:
        return f"{self._file} line {self._number}"

    def row(self) -> list[Line] | None:
        """The next row, [] for an empty line, or None at the end."""
        if not self._next_line():
            return None
        if b'"' not in self._line:
            content = self._checked(_without_end(self._line))
            return [] if not content else [content] if b"," not in content else list(content.split(b","))
        fields = [self._field()]
        while self._line[self._at : self._at + 1] == b",":
            self._at += 1
            fields.append(self._field())
        if self._line[self._at :].strip(b"\r\n"):
            raise self._error("a comma is expected after a quote")
        return fields

    def _next_line(self) -> bool:
        self._line, self._at = next(self._lines, b""), 0
        self._number += bool(self._line)
        return bool(self._line)

    def _field(self) -> Line:
        """The field that begins here; goes on to its end."""
        if self._line[self._at : self._at + 1] == b'"':
            self._at += 1
            return self._quoted()
        end = self._line.find(b",", self._at)
        field = self._line[self._at : end] if end >= 0 else self._line[self._at :].rstrip(b"\r\n")
        self._at = end if end >= 0 else len(self._line)
        return self._checked(field)

    def _quoted(self) -> bytearray:
        field = bytearray()
        while True:
            end = self._line.find(b'"', self._at)
            field += memoryview(self._line)[self._at : end if end >= 0 else None]
            if len(field) > LARGEST_CELL:
                raise UserError(
                    f"{self.place}: a field has more than {LARGEST_CELL >> 20} MiB: close its quotes, cut it into "
                    "several, or give it as a .txt file"
                )
            if end < 0:
                if not self._next_line():
                    raise self._error("a quote is not closed")
                continue
            self._at = end + 1
            if self._line[self._at : self._at + 1] != b'"':
                return field
            field += b'"'
            self._at += 1

    def _checked(self, field: Line) -> Line:
        if b"\r" in field:
            raise self._error("a line end in a field without quotes")
        return field

    def _error(self, reason: str) -> UserError:
        return UserError(f"{self.place} cannot be read ({reason}): give a whole table")


def _without_end(line: Line) -> Line:
    """Without its line end; a long line is cut in place, for want of memory for two."""
    size = len(line)
    while size and line[size - 1] in b"\r\n":
        size -= 1
    if isinstance(line, bytes):
        return line[:size]
    del line[size:]
    return line
