"""metrics.jsonl."""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def cut_back(self, step: int) -> None:
        """Removes what was written after `step`, and what was not written to its end."""
        if not self.path.exists():
            return
        end = 0
        with self.path.open("rb+") as file:  # in place: that needs no room on a full disk
            for line in file:
                if not line.endswith(b"\n") or _step(line) > step:
                    break
                end += len(line)
            file.truncate(end)

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


def _step(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # what a loss of power leaves
        return math.inf
