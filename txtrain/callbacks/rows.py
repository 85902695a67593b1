"""metrics.jsonl."""

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from txtrain.records import read_bytes
from txtrain.saving import PARTIAL

log = logging.getLogger(__name__)


class Rows:
    """One JSON object a line, each with its step. What cannot be written waits in memory.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []

    def append(self, row: Mapping[str, Any]) -> None:
        self._waiting.append(json.dumps(row).encode() + b"\n")
        self._write()

    def sync(self) -> None:
        """Sees to it that the rows so far outlive a loss of power, as far as the disk lets them."""
        if self._waiting:
            self._write()
        try:
            with self.path.open("rb") as file:
                os.fsync(file)
        except OSError:
            pass  # told when the row was to be written

    def read(self) -> list[dict[str, Any]]:
        """The rows that can be read."""
        if not os.path.lexists(self.path):
            return []
        return [json.loads(row) for line in read_bytes(self.path).splitlines() for _, row in _rows_in(line)]

    def cut_back(self, step: int) -> None:
        """Removes what was written after `step` (all of it for a run at its start) and what cannot be read."""
        if not os.path.lexists(self.path):
            return
        content = read_bytes(self.path)
        kept, unreadable = list[bytes](), 0
        for line in content.splitlines() if step else ():
            rows = _rows_in(line)
            kept += [row for at, row in rows if at <= step]
            unreadable += not rows and line.strip(b"\0") != b""
        self._replace(content, b"".join(kept))
        if unreadable:
            log.warning("%s: lines that cannot be read and are left out: %d.", self.path, unreadable)

    def _replace(self, before: bytes, after: bytes) -> None:
        """In place where only the end goes, which needs no room on a full disk; else whole or not at all."""
        if before.startswith(after):
            os.truncate(self.path, len(after))
            return
        partial = self.path.with_name(self.path.name + PARTIAL)
        try:
            partial.write_bytes(after)
            os.replace(partial, self.path)
        except OSError:  # a full disk: over what is there
            partial.unlink(missing_ok=True)
            with self.path.open("rb+") as file:
                file.write(after)
                file.truncate()

    def _write(self) -> None:
        try:
            _append(self.path, b"".join(self._waiting))
        except OSError as error:
            if len(self._waiting) == 1:
                log.warning("%s cannot be written (%s): rows wait in memory.", self.path, error.strerror)
            return
        if len(self._waiting) > 1:
            log.info("%s is written again, with the %d rows that waited.", self.path, len(self._waiting) - 1)
        self._waiting.clear()


def _append(path: Path, data: bytes) -> None:
    """All of it or nothing: half a line would spoil the one that follows."""
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(end)
            raise


def _rows_in(line: bytes) -> list[tuple[float, bytes]]:
    """The rows in a line, each with its step: one, none if it is torn or damaged, two where a line end was damaged."""
    found = []
    for part in re.split(rb'(?<=\})(?=.?\{"step")', line):
        begin = part.find(b'{"step"')
        text = part[max(begin, 0) :].decode("latin-1")
        try:
            row, end = json.JSONDecoder().raw_decode(text)
            step = row["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if isinstance(step, int | float) and text[:end].isascii() and len(text) - end <= 1:
            found.append((step, text[:end].encode() + b"\n"))
    return found
