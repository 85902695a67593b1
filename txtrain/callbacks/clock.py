"""A clock of training alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds spent training: it stands still while a run validates, samples or saves."""

    def __init__(self) -> None:
        self.seconds_before = 0.0  # of the runs that this one goes on from
        self._began = time.monotonic()
        self._elapsed = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        return self._elapsed + (0.0 if self._since is None else time.perf_counter() - self._since)

    @property
    def run_seconds(self) -> float:
        """Since the run began, with what is no training but preparing the data, and the time before a resume."""
        return self.seconds_before + time.monotonic() - self._began

    def leave_out(self, seconds: float) -> None:
        """So many seconds of the past are not the run's."""
        self._began += seconds

    def start(self) -> None:
        if self._since is None:
            _finish_queued_work()
            self._since = time.perf_counter()

    def stop(self) -> None:
        if self._since is not None:
            _finish_queued_work()
            self._elapsed, self._since = self.seconds, None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stands still inside, and goes on only if it went before."""
        went = self._since is not None
        self.stop()
        yield
        if went:
            self.start()


def _finish_queued_work() -> None:
    """What a GPU has been given but not done yet belongs to the time before."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
