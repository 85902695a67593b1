"""Real runs that are told to end, or whose processes die."""

import json
import os
import pty
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import forked
from tests.test_resume import ONE, ROOT, TINY, TWO, Process, end_of, finish, rows, start
from txtrain.signals import inbox

SETTINGS = [*TINY, "save.every=100"]
FAIL_WHEN_ALARMED = """
import signal
import subprocess

def fail(*_):
    raise RuntimeError("the second process fails on purpose")

signal.signal(signal.SIGALRM, fail)
"""
LONG = ["trainer.max_steps=10000", "data.batch_size=4096"]  # a step takes many seconds


def wait_until(fact: Callable[[], object], process: Process | None = None) -> None:
    deadline = time.monotonic() + 240
    while not fact():
        assert process is None or process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def trained(run_dir: Path) -> int:
    """Steps so far."""
    path = run_dir / "metrics.jsonl"
    return json.loads(path.read_text().splitlines()[-1])["step"] if path.exists() and path.read_text() else 0


def children(process: Process) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run directory of an uninterrupted run, one for each setting."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*overrides: str) -> Path:
        if overrides not in made:
            folder = tmp_path_factory.mktemp("whole")
            finish(folder, "run_dir=whole", *SETTINGS, f"data.cache_dir={folder / 'cache'}", *overrides)
            made[overrides] = folder / "whole"
        return made[overrides]

    return run


def check_same(parts: Path, whole: Path) -> None:
    one, other = end_of(whole), end_of(parts)
    assert one.keys() == other.keys()
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []
    assert rows(whole) == rows(parts)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "number, overrides",
    [
        (signal.SIGTERM, ONE),
        (signal.SIGINT, ONE),
        (signal.SIGUSR1, ONE),
        (signal.SIGTERM, [*TWO, "strategy=ddp"]),
        (signal.SIGUSR1, [*TWO, "strategy=fsdp"]),
        (signal.SIGTERM, [*TWO, "strategy=deepspeed_zero2"]),
    ],
    ids=["term", "int", "usr1", "ddp", "fsdp", "zero2"],
)
def test_a_signal_at_a_random_moment(
    number: int, overrides: list[str], whole: Callable[..., Path], tmp_path: Path
) -> None:
    """Of several processes only the second is told."""
    if "deepspeed" in overrides[-1]:
        pytest.importorskip("deepspeed")
    run_dir, chance = tmp_path / "parts", random.Random(f"{number} {overrides}")
    process = start(tmp_path, "run_dir=parts", *SETTINGS, f"data.cache_dir={tmp_path / 'cache'}", *overrides)
    step = chance.randrange(1, 9)
    wait_until(lambda: trained(run_dir) >= step, process)
    time.sleep(chance.uniform(0, 0.05))
    os.kill(children(process)[0] if "trainer.devices=2" in overrides else process.pid, number)
    assert process.wait(timeout=120) == 128 + number
    outcome = json.loads((run_dir / "summary.json").read_text())
    assert (outcome["state"], outcome["stopped"]) == ("interrupted", f"told to end by {signal.Signals(number).name}")
    output = (tmp_path / "output.txt").read_text()
    assert f"saved at step {outcome['steps']}: to go on, type python train.py resume=parts" in output
    assert "Traceback" not in output
    finish(tmp_path, "resume=parts")
    check_same(run_dir, whole(*overrides))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.heavy)])
def test_all_processes_are_told_and_the_workers_too(number: int, tmp_path: Path) -> None:
    """As by SLURM, which does not know a worker that prepares batches from a rank."""
    settings = [*SETTINGS, *TWO, "data.num_workers=1", f"data.cache_dir={tmp_path / 'cache'}"]
    process = start(tmp_path, "run_dir=run", *settings, "trainer.max_steps=10000")
    wait_until(lambda: trained(tmp_path / "run") >= 3, process)
    os.killpg(process.pid, number)
    assert process.wait(timeout=60) == 128 + number
    outcome = json.loads((tmp_path / "run/summary.json").read_text())
    assert outcome["state"] == "interrupted"
    assert (tmp_path / "run/checkpoints/last").resolve().name == f"step_{outcome['steps']:08d}.ckpt"
    assert "Traceback" not in (tmp_path / "output.txt").read_text()


@pytest.mark.slow
def test_who_reads_the_output_leaves(tmp_path: Path) -> None:
    """As in `python train.py | head -1`: the run saves and ends."""
    settings = [*SETTINGS, *ONE, f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_steps=10000"]
    command = [sys.executable, str(ROOT / "train.py"), "run_dir=run", *settings]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith(b"model ")
        process.stdout.close()
        assert process.stderr.read() == b"told to end by SIGPIPE\n"
        assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    outcome = json.loads((tmp_path / "run/summary.json").read_text())
    assert (outcome["state"], outcome["stopped"]) == ("interrupted", "told to end by SIGPIPE")
    assert (tmp_path / "run/checkpoints/last").resolve().name == f"step_{outcome['steps']:08d}.ckpt"
    log = (tmp_path / "run/train.log").read_text()
    assert log[21:].startswith("model "), "nothing of a library's comes first"


@pytest.mark.slow
def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    """Its end is a signal to the run, which can write there no more: it saves and ends."""
    settings = [*SETTINGS, *ONE, f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_steps=10000"]
    screen, terminal = pty.openpty()
    with open(terminal, "w") as there:
        command = [sys.executable, "-c", IN_TERMINAL, "run_dir=run", *settings]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
        process = forked.start(
            command, cwd=tmp_path, env=environment, stdout=there, stderr=there, start_new_session=True
        )
    while trained(tmp_path / "run") < 3:
        if select.select([screen], [], [], 0.05)[0]:
            os.read(screen, 4096)
    os.close(screen)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    outcome = json.loads((tmp_path / "run/summary.json").read_text())
    assert (outcome["state"], outcome["stopped"]) == ("interrupted", "told to end by SIGHUP")
    assert (tmp_path / "run/checkpoints/last").resolve().name == f"step_{outcome['steps']:08d}.ckpt"


# The terminal is that of the session, so its end is told to it.
IN_TERMINAL = """
import fcntl, signal, sys, termios
from txtrain.cli import main
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the tests, and what they start, ignore it
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
sys.exit(main(["train", *sys.argv[1:]]))
"""

OUTPUTS = """
import os, sys
from txtrain.cli import main
if sys.argv[1] == "closed":
    os.close(1)
    sys.stdout = None  # as Python has it then
elif sys.argv[1] == "full":
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("output, told", [("closed", ""), ("full", "standard output cannot be written (No space left")])
def test_output_that_leads_nowhere(output: str, told: str, tmp_path: Path) -> None:
    """A run is whole without it, and a command that only prints has failed on a full disk."""
    settings = [*SETTINGS, *ONE, f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_steps=2", "samples.length=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for command, code in ((["train", "run_dir=run", *settings], 0), (["--help"], int(output == "full"))):
        done = forked.run([sys.executable, "-c", OUTPUTS, output, *command], cwd=tmp_path, env=environment, timeout=120)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", bool(told)), done.stderr
        assert told in done.stderr
    assert json.loads((tmp_path / "run/summary.json").read_text())["state"] == "finished"
    assert "max_steps=2 reached" in (tmp_path / "run/train.log").read_text()


def test_nohup_is_obeyed() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with inbox.opened():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_without_a_width_shows_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    code = "from txtrain.terminal import console; console.print('a line')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "a line\n"


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, "run_dir=run", *SETTINGS, *TWO, *LONG, f"data.cache_dir={tmp_path / 'cache'}")
    output = tmp_path / "output.txt"
    wait_until(lambda: "run directory" in output.read_text(), process)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all processes of the run
        wait_until(lambda: output.read_text().count("once more ends at once") == 1)
        time.sleep(1)
    assert process.wait(timeout=30) == 130
    assert "Traceback" not in output.read_text()
    assert json.loads((tmp_path / "run/summary.json").read_text())["state"] == "interrupted"


@pytest.mark.slow
def test_while_data_are_prepared_it_ends_at_once(tmp_path: Path) -> None:
    """The token cache is locked by somebody else, so it waits there."""
    from filelock import FileLock

    settings = [*SETTINGS, *ONE, f"data.cache_dir={tmp_path / 'cache'}"]
    finish(tmp_path, "run_dir=first", *settings)
    [lock] = (tmp_path / "cache").glob("*.lock")
    lock.with_suffix("").rename(tmp_path / "gone")
    with FileLock(lock):
        process = start(tmp_path, "run_dir=second", *settings, by=subprocess.Popen)
        wait_until(lambda: "safetensors" in Path(f"/proc/{process.pid}/maps").read_text(), process)
        time.sleep(3)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    assert not (tmp_path / "second").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["ddp", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("fsdp", "deepspeed_zero2"))]
)
@pytest.mark.parametrize("death", ["killed", "fails"])
def test_a_process_that_dies_ends_the_other(
    death: str, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "deepspeed" in strategy:
        pytest.importorskip("deepspeed")
    (tmp_path / "sitecustomize.py").write_text(FAIL_WHEN_ALARMED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = [*SETTINGS, *TWO, f"strategy={strategy}", f"data.cache_dir={tmp_path / 'cache'}"]
    process = start(tmp_path, "run_dir=run", *settings, "trainer.max_steps=10000")
    wait_until(lambda: trained(tmp_path / "run") >= 3, process)
    [second] = children(process)
    os.kill(second, signal.SIGKILL if death == "killed" else signal.SIGALRM)
    assert process.wait(timeout=60) == 1
    assert not Path(f"/proc/{second}").exists()
    output = (tmp_path / "output.txt").read_text()
    assert json.loads((tmp_path / "run/summary.json").read_text())["state"] == "failed"
    how = "was ended by SIGKILL" if death == "killed" else "has failed with exit code 1: see its error above"
    assert output.splitlines()[-1].startswith(f"error: the process of device 1 {how}")
    assert output.count("Traceback") == (death == "fails")
    assert ("RuntimeError: the second process fails on purpose" in output) == (death == "fails")


@pytest.mark.slow
def test_a_first_process_that_dies_ends_the_other(tmp_path: Path) -> None:
    settings = [*SETTINGS, *TWO, f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_steps=10000"]
    process = start(tmp_path, "run_dir=run", *settings)
    wait_until(lambda: trained(tmp_path / "run") >= 3, process)
    [second] = children(process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{second}/exe").exists():  # else it is gone, or has ended and nobody has taken note
        assert time.monotonic() < deadline
        time.sleep(0.1)
    told = [line for line in (tmp_path / "output.txt").read_text().splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and told[0].startswith("error: the process of device 0, which started this one, was ended")
