"""Processes that are killed just before one of their file operations, each in turn."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree")


def run_killed(function: Callable[[], object], folder: Path, *, at: int) -> bool:
    """Forks a process that is killed before its operation number `at` on names in `folder`; whether it was.

    Only for a process with one thread, such as one of `tests.forked`.
    """
    child = os.fork()
    if child == 0:
        count, prefix = 0, str(folder)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            path = arguments[1 if event == "os.symlink" else 0] if event in ("open", *EVENTS) else None
            if isinstance(path, str | os.PathLike) and os.path.abspath(os.fspath(path)).startswith(prefix):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            function()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0
