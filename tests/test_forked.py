"""A forked process is what Python would have started."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forked

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TOLD = """
import json, os, random, sys, threading
import numpy
facts = {"pid": os.getpid(), "group": os.getpgid(0), "folder": os.getcwd(), "arguments": sys.argv}
facts |= {"environment": dict(os.environ), "threads": len(os.listdir("/proc/self/task"))}
facts |= {"files": len(os.listdir("/proc/self/fd")), "random": [random.random(), numpy.random.rand()]}
facts |= {"path": sys.path[0], "imported": "lightning" in sys.modules}
print(json.dumps(facts))
print("an error", file=sys.stderr)
"""


def test_it_has_what_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TOLD)
    command = [sys.executable, tmp_path / "script.py", "a", "b c"]
    environment = ENVIRONMENT | {"HELLO": "world"}
    runs = [forked.run(command, cwd=tmp_path, env=environment, timeout=60) for _ in range(2)]
    assert [(run.returncode, run.stderr) for run in runs] == [(0, "an error\n")] * 2
    one, other = (json.loads(run.stdout) for run in runs)
    assert one["imported"]  # which is what all this is for
    assert one["pid"] != other["pid"]
    assert set(one["random"]).isdisjoint(other["random"])
    assert (one["folder"], one["path"]) == (str(tmp_path), str(tmp_path))
    assert one["arguments"] == [str(tmp_path / "script.py"), "a", "b c"]
    assert (one["threads"], one["files"]) == (1, 4)  # the last of them to list the folder
    assert {name: one["environment"].get(name) for name in environment} == environment


@pytest.mark.parametrize(
    "code, returncode, error",
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('told')", 1, "told\n"),
        ("raise ValueError('told')", 1, "ValueError: told\n"),
        ("import atexit; atexit.register(print, 'told', file=__import__('sys').stderr)", 0, "told\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    ],
)
def test_it_ends_as_python_does(tmp_path: Path, code: str, returncode: int, error: str) -> None:
    command = [sys.executable, "-c", code]
    for start in (forked.run, subprocess.run):
        kind = {} if start is forked.run else {"capture_output": True, "text": True}
        done = start(command, cwd=tmp_path, env=ENVIRONMENT, timeout=60, **kind)
        assert (done.returncode, done.stderr.endswith(error)) == (returncode, True)


def test_it_is_killed_with_its_session(tmp_path: Path) -> None:
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    with (tmp_path / "output").open("w") as file:
        command = [sys.executable, "-c", code]
        process = forked.start(command, cwd=tmp_path, env=ENVIRONMENT, stdout=file, stderr=file, start_new_session=True)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.01)
    while not (told := (tmp_path / "output").read_text()).endswith("\n"):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == process.poll() == -signal.SIGKILL
    while Path(f"/proc/{told.strip()}/exe").exists():
        time.sleep(0.01)


def test_what_is_read_early_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="read early"):
        forked.run([sys.executable, "-c", ""], cwd=tmp_path, env=ENVIRONMENT | {"OMP_NUM_THREADS": "2"}, timeout=60)
