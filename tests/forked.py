"""Processes that begin with PyTorch and Lightning imported, which would take each of them three seconds of a core.

A server, one for each process of pytest, imports what `txtrain train` imports and does nothing else: it has one thread,
no device and no process group. For each command it forks, and the child becomes what a new Python would be, with its
own process id, session, environment, folder, arguments, output and random numbers. It can be killed and told to end
like any process, and those that it starts are new ones from the very beginning.

Not for a test of how a process starts, of Python's flags, or of variables that are read while libraries are imported
(EARLY), which are refused: that is for `subprocess`. All children of a server hash alike, as if PYTHONHASHSEED was set.
"""

import atexit
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent
PRELOADED = ["txtrain.train", "txtrain.compose", "txtrain.task.causal_lm", "txtrain.data.text", "hydra.main"]
EARLY = ["OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"]
MOST = 1 << 20  # bytes of a command with its environment


class Process:
    """As much of `subprocess.Popen` as tests ask for."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            told = self._connection.recv(16)
            assert told, "the server of forked processes has ended"
            self._connection.close()
            self.returncode = os.waitstatus_to_exitcode(int(told))
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdout: IO[Any],
    stderr: IO[Any],
    start_new_session: bool = False,
) -> Process:
    """What `subprocess.Popen` would start: a script, `-m` and a module, or `-c` and code, after `sys.executable`."""
    control, early = _server()
    python, *words = map(str, command)
    assert python == sys.executable
    assert {name: env.get(name) for name in EARLY} == early, "a variable that is read early: start it by subprocess"
    request = {"words": words, "cwd": str(cwd), "env": dict(env), "session": start_new_session}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        files = [theirs.fileno(), stdout.fileno(), stderr.fileno()]
        socket.send_fds(control, [json.dumps(request).encode()], files)
    pid = ours.recv(16)
    assert pid, "the server of forked processes has ended"
    return Process(ours, int(pid))


def run(
    command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` would give with `capture_output` and `text`."""
    pipes = [os.pipe() for _ in range(2)]  # a file would be one more that a full disk cuts short
    with open(pipes[0][1], "w") as stdout, open(pipes[1][1], "w") as stderr:
        process = start(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
    with ThreadPoolExecutor(2) as readers:
        told = [readers.submit(_read, pipe[0]) for pipe in pipes]
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(list(command), code, *(reader.result() for reader in told))


def _read(pipe: int) -> str:
    with open(pipe) as file:
        return file.read()


@cache
def _server() -> tuple[socket.socket, dict[str, str | None]]:
    """The server's socket, and what it has of the variables that are read early."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.forked", str(theirs.fileno())]
    files: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "pass_fds": [theirs.fileno()]}
    server = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **files)
    theirs.close()

    def end() -> None:
        ours.close()  # at which it ends
        server.wait()

    atexit.register(end)
    return ours, {name: environment.get(name) for name in EARLY}


def _serve(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Forks for each request until there are no more; returns in the children only, each with its own."""
    children: dict[int, socket.socket] = {}
    ended, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(told)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([control, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _tell_ends(children)
        if control not in ready:
            continue
        data, files, _, _ = socket.recv_fds(control, MOST, 3)
        if not data:
            os._exit(0)
        assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked safely"
        connection = socket.socket(fileno=files[0])
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for file in (control, connection, *children.values()):
                file.close()
            os.close(ended)
            os.close(told)
            return json.loads(data), files[1:]
        connection.send(str(pid).encode())
        children[pid] = connection
        for file in files[1:]:
            os.close(file)


def _tell_ends(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with children.pop(pid) as connection, suppress(BrokenPipeError):  # of one that nobody waits for
            connection.send(str(status).encode())


def _become(request: dict[str, Any], files: list[int], added: Mapping[str, str]) -> None:
    """Takes on what was asked for; `added` is what libraries have put into the environment."""
    import numpy
    from lightning.fabric.utilities import rank_zero

    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    paths = [os.environ["PYTHONPATH"], request["env"].get("PYTHONPATH", "")]
    os.environ.clear()
    os.environ.update({**added, **request["env"]})
    sys.path[:] = [*filter(None, paths[1].split(os.pathsep)), *(path for path in sys.path if path != paths[0])]
    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0  # it was read when Lightning was imported
    random.seed()
    numpy.random.seed()


def _run(words: list[str]) -> int:
    """The exit code of a command line, which is executed as Python does."""
    try:
        _execute(words)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _exit(code: int) -> None:
    """As Python ends, but nothing is freed: that would first copy all that the server has imported."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _execute(words: list[str]) -> None:
    sys.orig_argv = [sys.executable, *words]
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    _before = dict(os.environ)
    for _name in PRELOADED:
        import_module(_name)
    _added = {name: value for name, value in os.environ.items() if _before.get(name) != value}
    gc.freeze()  # what is never looked at is never copied
    _request, _files = _serve(socket.socket(fileno=int(sys.argv[1])))
    _become(_request, _files, _added)
    _exit(_run(_request["words"]))
