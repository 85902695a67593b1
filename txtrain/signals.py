"""Signals that tell a command to end, and what it does about them.

While a run trains they are only noted, so that it can save first (`txtrain.callbacks.stopping`). At any other time,
such as while data are prepared, they end the command at once.
"""

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType

# SLURM sends the last one before a job's time is over, if its script asks for it (`--signal=USR1@120`).
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
WORKER_GRACE = 120  # seconds
FIRST_CTRL_C = b"\nCtrl-C: saving a checkpoint after this step; once more ends at once\n"


class Interrupted(SystemExit):
    """A command was told to end; the exit code is 128 and the signal's number, as in a shell.

    Args:
        number: of the signal.
        agreed: whether all processes of the run end by it at the same step, with a checkpoint.
    """

    def __init__(self, number: int, *, agreed: bool = False) -> None:
        super().__init__(128 + number)
        self.number, self.agreed = number, agreed

    def __str__(self) -> str:
        return f"told to end by {signal.Signals(self.number).name}"


class Inbox:
    """What this process was told while it could not end at once.

    Attributes:
        told: number of the first signal, 0 if there was none.
    """

    def __init__(self) -> None:
        self.told = 0
        self._notes = self._speaks = False
        self._process = 0

    def note(self, *, speaks: bool) -> None:
        """From now on signals are noted; a second Ctrl-C still ends the command.

        Args:
            speaks: whether this process answers the first Ctrl-C, which a terminal sends to all of a run.
        """
        self.told, self._notes, self._speaks = 0, True, speaks

    def end_at_once(self) -> None:
        """From now on signals end the command when they come."""
        self._notes = False

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Around a command: signals come here."""
        self._process = os.getpid()
        # Under nohup a closed terminal ends nothing.
        heard = [number for number in ENDING if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)]
        previous = {number: signal.signal(number, self._receive) for number in heard}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def lose_reader(self) -> None:
        """Whoever read standard output has left, as `head` does when it has enough: as if by SIGPIPE.

        The signal itself is no use: Python ignores it, since any connection that breaks sends it too.
        """
        self._receive(signal.SIGPIPE, None)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked: who forked it ends it, by SIGTERM if need be
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif self._notes and not self.told:
            self.told = number
            if number == signal.SIGINT and self._speaks:
                with suppress(OSError):
                    os.write(2, FIRST_CTRL_C)  # print and logging may be what was interrupted
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        elif not self._notes:
            raise Interrupted(number)


inbox = Inbox()


def open_streams() -> None:
    """Gives a process that was started without standard streams, as by `>&-`, ones that lead nowhere.

    Else the next file that it opens takes the place of a stream, and is written what is meant for that.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is this one
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # a model may write what a terminal's encoding lacks


def tell(text: str) -> None:
    """A line on standard error, if it can be written."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def flush_output(text: str = "") -> bool:
    """Writes what waits for standard output; False, told in a line, where that cannot be: a full disk, a terminal that
    was closed.

    Raises:
        BrokenPipeError: nobody reads it any more.
    """
    try:
        print(end=text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        tell(f"error: standard output cannot be written ({error.strerror})")
        return False
    return True


def drop_output() -> None:
    """Standard output leads nowhere from now on, so that what is still to be written fails no more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def is_unread(descriptor: int = 1) -> bool:
    """Whether this is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def outlive(_: int) -> None:
    """Has a worker of a DataLoader go on for a while after SIGTERM, which SLURM sends to all processes of a job.

    Whoever started it still needs it for the step that it finishes.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_GRACE))
