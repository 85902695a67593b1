"""Progress before training starts: a bar on a terminal, plain lines elsewhere, and never two seconds of silence."""

import logging
import threading
import time
from types import TracebackType

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from txtrain.logger.lines import LOG_ONLY
from txtrain.printable import duration, short
from txtrain.terminal import console

INTERVAL = 1.5  # seconds between plain lines
REFRESH = 0.25  # seconds between updates of a bar

log = logging.getLogger(__name__)


class Progress:
    """Tells how far something has come: `tokenizing 40 %, 1:20 left, 9.1 MB/s`. Nothing is shown of what is quick.

    A thread tells it, so a long call into a library is no silence. Only a process whose logger speaks shows anything.

    Args:
        doing: in a word or two, such as `tokenizing`.
        total: units in all; None where nobody knows.
        unit: of what is counted.
        shown: false where results appear on the terminal as they come.
    """

    def __init__(self, doing: str, total: float | None = None, *, unit: str = "B", shown: bool = True) -> None:
        self.doing, self.total, self.unit, self.shown = doing, total, unit, shown
        self.done = 0.0
        self._began = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def advance(self, amount: float = 1) -> None:
        """Counts units that are done."""
        self.done += amount

    def text(self) -> str:
        seconds = time.monotonic() - self._began
        rate = self.done / max(seconds, 1e-9)
        if not self.total:
            told = f"{self.doing}, {duration(seconds)}"
        elif not self.done:
            told = f"{self.doing} 0 %"
        else:
            share = min(self.done / self.total, 1.0)
            told = f"{self.doing} {share:.0%}".replace("%", " %") + f", {duration(seconds / share - seconds)} left"
        return told + (f", {short(rate)}{' ' if len(self.unit) > 1 else ''}{self.unit}/s" if self.done else "")

    def __enter__(self) -> "Progress":
        self._began = time.monotonic()
        if self.shown and log.isEnabledFor(logging.INFO):
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _tell(self) -> None:
        if self._over.wait(INTERVAL):
            return
        if not console.is_terminal:
            self._print_lines()
            return
        columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
        # A bar on standard error leaves standard output alone: results go there.
        with Bar(*columns, console=console, transient=True, redirect_stdout=not console.stderr) as bar:
            task = bar.add_task(self.text(), total=self.total)
            while not self._over.wait(REFRESH):
                bar.update(task, description=self.text(), completed=self.done)
        log.info("%s", self.text(), extra=LOG_ONLY)

    def _print_lines(self) -> None:
        log.info("%s", self.text())
        while not self._over.wait(INTERVAL):
            log.info("%s", self.text())
