"""The process that trains in a run directory: one at a time, here or on another machine that shares the file system.

It holds a POSIX lock on `owner.json`, which ends with it however it ends, and changes the file's time every few
seconds. Where a lock says nothing, as of a process on a machine that is gone, these signs of life decide.
"""

import fcntl
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from txtrain.errors import UserError
from txtrain.launch import slurm_job, slurm_restarted

FILE = "owner.json"
BEAT = 5.0  # seconds from one sign of life to the next
SILENCE = 90.0  # seconds without any after which an owner on another machine counts as dead
HOLDS_BYTES = 4096  # more than an owner writes about itself

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)
_held: "list[Owner]" = []


class Owner:
    """This process as the owner of a run directory, until `release`.

    Args:
        run_dir: an existing directory.

    Raises:
        UserError: another process trains in it.
        OSError: the directory cannot be written.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path, self._token = run_dir / FILE, secrets.token_hex(8)
        self._file = _take(self.path)
        self._write()
        self._released = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="owner")
        self._beating.start()
        _held.append(self)

    def release(self) -> None:
        """Lets others train in the directory."""
        self._released.set()
        self._beating.join()
        _held.remove(self)
        with suppress(OSError):
            if not self._is_taken_over():
                self.path.unlink()
        os.close(self._file)

    def _write(self) -> None:
        owner = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        owner |= {"boot": _boot(), "job": slurm_job(), "token": self._token}
        with suppress(OSError):  # a full disk: the lock is what counts
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(owner).encode() + b"\n", 0)

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with suppress(OSError):  # of a file system that is away for a while
                if self._is_taken_over():
                    print(f"error: another process has taken over {self.path.parent}", file=sys.stderr, flush=True)
                    os._exit(1)
                os.utime(self._file)

    def _is_taken_over(self) -> bool:
        """Whether another process took this one for dead; without opening the file again, which would end the lock."""
        if not self.path.exists():
            return False
        return not _is(self._file, self.path) or _read(self._file).get("token", self._token) != self._token


def releasing_runs(function: Callable[P, R]) -> Callable[P, R]:
    """What the function owns when it ends is released."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        finally:
            for owner in _held[:]:
                owner.release()

    return wrapped


def check_unowned(run_dir: Path) -> None:
    """Raises a UserError if a process of this machine trains in the directory; writes nothing."""
    try:
        file = os.open(run_dir / FILE, os.O_RDWR)
    except OSError:
        return
    try:
        if _lock(file) is False:
            raise UserError(_refusal(run_dir, _read(file)))
    finally:
        os.close(file)


def _take(path: Path) -> int:
    """The file, open and locked, once whoever had it is known to have ended."""
    taken_over: dict[str, Any] | None = None
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        locked, owner = _lock(file), _read(file)
        if locked is False and not owner:  # it has just begun
            time.sleep(0.1)
            owner = _read(file)
        if not (_has_ended(owner, locked=locked) or _is_silent(path, owner, locked=locked)):
            os.close(file)
            raise UserError(_refusal(path.parent, owner))
        if locked is False:  # a file server keeps the lock of a machine that is gone
            taken_over = owner
            path.unlink(missing_ok=True)
        elif _is(file, path):
            if owner or taken_over:
                whose = _name(owner or taken_over or {})
                log.warning("%s trained in %s and has ended without a word: taken over.", whose, path.parent)
            return file
        os.close(file)  # it was let go between opening and locking


def _has_ended(owner: dict[str, Any], *, locked: bool | None) -> bool:
    """Whether the lock, or SLURM, says that an owner is no more."""
    if not owner:
        return locked is not False
    same_kernel = owner.get("boot") == _boot()
    restarted = slurm_restarted() and owner.get("job") == slurm_job()  # SLURM ends a job before it starts it again
    return (bool(locked) and same_kernel) or restarted


def _is_silent(path: Path, owner: dict[str, Any], *, locked: bool | None) -> bool:
    """Whether an owner whose lock may say nothing gives no sign of life; waits for one, by the file system's clock."""
    if not owner or (locked is False and owner.get("boot") == _boot()):
        return False
    try:
        latest = path.stat().st_mtime
        left = SILENCE - (_now(path) - latest)
        if left > 0:
            log.warning("%s trained in %s: waiting up to %.0f s for a sign of life.", _name(owner), path.parent, left)
        deadline = time.monotonic() + left
        while time.monotonic() < deadline:
            time.sleep(min(1.0, left))
            if path.stat().st_mtime != latest:
                return False
    except FileNotFoundError:  # it has let go
        pass
    return True


def _now(path: Path) -> float:
    """The time as the file system has it, whose clock is another machine's."""
    probe = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()


def _lock(file: int) -> bool | None:
    """Whether this process has the lock now; None where the file system has no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _read(file: int) -> dict[str, Any]:
    """What an owner wrote about itself; empty if it did not."""
    try:
        found = json.loads(os.pread(file, HOLDS_BYTES, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is(file: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def _boot() -> str:
    """What a running kernel has alone; processes that share it see each other's locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner.get('process', 'unknown')} on {owner.get('host', 'an unknown machine')}"


def _refusal(run_dir: Path, owner: dict[str, Any]) -> str:
    since = f" since {owner['since']}" if "since" in owner else ""
    return f"{_name(owner)} trains in {run_dir}{since}: wait until it ends, end it, or name another run_dir"
