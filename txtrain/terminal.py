"""The terminal, and the stages of a run in which nothing else is printed. Imports nothing that takes long."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.status import Status

from txtrain.signals import drop_output, inbox, tell

SILENCE = 2.0  # seconds without output after which a line names the stage

log = logging.getLogger(__name__)


class _Console(Console):
    lost = False  # whether a line could not be written

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:  # a terminal that was closed, or a full disk
            del self._buffer[:]
            if not self.lost:
                self.lost = True
                tell(f"standard output cannot be written ({error.strerror}): train.log has its lines")

    def on_broken_pipe(self) -> None:
        self.quiet = True
        drop_output()
        inbox.lose_reader()


console = _Console(highlight=False, soft_wrap=True)
if console.width < 1:  # COLUMNS=0, in which nothing would be shown
    console.width = 80


@contextmanager
def status_on_stderr() -> Iterator[None]:
    """Status lines and bars go to standard error, for a command whose standard output is its result."""
    before = console.stderr, console.is_interactive, console.no_color
    console.stderr = True
    # Rich decides these once, by standard output.
    console.is_interactive = console.is_terminal and not console.is_dumb_terminal
    console.no_color |= not console.is_terminal
    try:
        yield
    finally:
        console.stderr, console.is_interactive, console.no_color = before


class Phase:
    """A spinner with a text in a terminal; elsewhere a line, if it takes longer than two seconds.

    So that no one takes a quiet process for a hanging one.

    Args:
        text: such as `loading the model`.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._status: Status | None = None
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        if console.is_terminal:
            self._status = console.status(self.text)
            self._status.start()
        else:
            self._timer = threading.Timer(SILENCE, self._name)
            self._timer.daemon = True
            self._timer.start()

    def _name(self) -> None:
        if logging.getLogger("txtrain").handlers:
            log.info("%s ...", self.text)
        else:  # logging is not set up while PyTorch loads
            console.print(f"{self.text} ...")

    def stop(self) -> None:
        """Also without a start."""
        if self._status is not None:
            self._status.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._status = self._timer = None

    def __enter__(self) -> "Phase":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
