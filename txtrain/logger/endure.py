"""What the loggers of a run have in common."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

Row = Mapping[str, Any]


class Enduring:
    """Begins where training begins, and ends no training by what goes wrong in it."""

    label: str
    begun = False
    _told = False

    @contextmanager
    def enduring(self) -> Iterator[None]:
        """Around what may fail; the first failure is told."""
        try:
            yield
        except Exception as error:  # of any kind: it comes from a library, its service, a server or the disk
            if not self._told:
                reason = (str(error).splitlines() or [""])[0] or type(error).__name__
                log.warning("%s lacks what comes now (%s): training goes on, metrics.jsonl has it.", self.label, reason)
            self._told = True


def with_nan(row: Row) -> dict[str, Any]:
    """A row of metrics.jsonl as it was logged, without its step."""
    return {name: math.nan if value is None else value for name, value in row.items() if name != "step"}


def later(rows: Sequence[Row], step: int) -> list[Row]:
    """Those after a step."""
    return [row for row in rows if row["step"] > step]
