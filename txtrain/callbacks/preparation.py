"""Time and memory of preparing the data, kept apart from training's."""

import time
from types import TracebackType

from txtrain.callbacks.clock import Clock
from txtrain.callbacks.hardware import forget_peak, process_peak


class Preparation:
    """Measures what is done inside it, and leaves it out of the run's clock and of its peak memory.

    Args:
        clock: of the run.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds: float | None = None
        self.peak_memory: int | None = None  # bytes of main memory of this process

    def __enter__(self) -> "Preparation":
        forget_peak()
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._began
        self.peak_memory = process_peak()
        self.clock.leave_out(self.seconds)
        forget_peak()
