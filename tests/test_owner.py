"""One process trains in a run directory, and who else tries is told which."""

import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import forked
from tests.test_resume import ONE, TINY, finish, rows, start
from tests.test_stopping import trained, wait_until
from txtrain import owner
from txtrain.cli import main
from txtrain.errors import UserError
from txtrain.owner import FILE, Owner, check_unowned, releasing_runs

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
ELSEWHERE = {"host": "node7", "process": 12, "since": "2026-01-01 12:00:00", "boot": "another", "job": "8"}
OWNS = """
import os, sys, time
from pathlib import Path
from txtrain import owner
owner.BEAT = 0.05
owner.Owner(Path(sys.argv[1]))
if os.fork() == 0:
    time.sleep(60)  # as a worker that outlives it for a while
print("owned", flush=True)
time.sleep(60)
"""


@releasing_runs
def own(run_dir: Path) -> None:
    Owner(run_dir)


def other(folder: Path) -> forked.Process:
    """Another process that trains in the folder."""
    with (folder / "output.txt").open("w") as output:
        command = [sys.executable, "-c", OWNS, str(folder)]
        process = forked.start(command, cwd=folder, env=ENVIRONMENT, stdout=output, stderr=output)
    wait_until(lambda: "owned" in (folder / "output.txt").read_text(), process)
    return process


def test_an_owner_is_named_and_followed_once_it_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = other(tmp_path)
    refusal = rf"^process {process.pid} on \S+ trains in {tmp_path} since .*: wait .*, or name another run_dir$"
    for attempt in (own, check_unowned):
        with pytest.raises(UserError, match=refusal):
            attempt(tmp_path)
    process.kill()
    process.wait()
    check_unowned(tmp_path)
    own(tmp_path)
    assert [f"process {process.pid} on" in line and "taken over" in line for line in caplog.messages] == [True]
    own(tmp_path)
    assert len(caplog.messages) == 1
    assert not (tmp_path / FILE).exists()


def test_one_that_was_taken_for_dead_ends(tmp_path: Path) -> None:
    process = other(tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).write_text(json.dumps(ELSEWHERE | {"token": "another"}))
    assert process.wait(timeout=60) == 1
    assert "another process has taken over" in (tmp_path / "output.txt").read_text()


def test_on_another_machine_signs_of_life_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(owner, "SILENCE", 3.0)
    path = tmp_path / FILE
    path.write_text(json.dumps(ELSEWHERE))
    beat = threading.Timer(0.5, path.touch)
    beat.start()
    with pytest.raises(UserError, match=r"^process 12 on node7 trains in .* since 2026-01-01 12:00:00: "):
        own(tmp_path)
    beat.join()
    os.utime(path, (time.time() - 1.5,) * 2)
    own(tmp_path)
    assert "waiting up to 2 s for a sign of life" in caplog.messages[-2]
    assert "process 12 on node7" in caplog.messages[-1] and "taken over" in caplog.messages[-1]


def test_a_long_silence_and_slurm_need_no_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    (tmp_path / FILE).write_text(json.dumps(ELSEWHERE))
    os.utime(tmp_path / FILE, (time.time() - 1000,) * 2)
    own(tmp_path)
    (tmp_path / FILE).write_text(json.dumps(ELSEWHERE))
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    own(tmp_path)
    assert time.monotonic() - began < 5


def test_without_locks_signs_of_life_count_here_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "SILENCE", 2.0)
    process = other(tmp_path)
    monkeypatch.setattr(owner, "_lock", lambda file: None)
    with pytest.raises(UserError, match=f"^process {process.pid} on "):
        own(tmp_path)
    process.kill()
    process.wait()
    own(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"host": 3}'])
def test_what_nobody_wrote_is_no_owner(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    os.utime(tmp_path / FILE, (0, 0))
    own(tmp_path)


def test_a_run_that_trains_is_not_resumed_but_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [*TINY, *ONE, f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_steps=1", "samples.length=0"]
    assert main(["train", "run_dir=run", *settings]) == 0
    assert not Path("run", FILE).exists()
    process = other(tmp_path / "run")
    capsys.readouterr()
    for command in (["resume=run", "trainer.max_steps=2"], ["run_dir=run", *settings]):
        assert main(["train", *command]) == 1
        assert capsys.readouterr().err.startswith(f"error: process {process.pid} on ")
    assert main(["train", "resume=run", "trainer.max_steps=2", "dry_run=true"]) == 0
    assert main(["eval", "run"]) == 0
    process.kill()
    process.wait()
    assert main(["train", "resume=run", "trainer.max_steps=2"]) == 0


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_it_starts_anew(tmp_path: Path) -> None:
    settings = [*TINY, *ONE, "save.every=100", "trainer.val_check_interval=12", "logger=none"]
    settings += [f"data.cache_dir={tmp_path / 'cache'}"]
    finish(tmp_path, "run_dir=whole", *settings)
    process = start(tmp_path, "run_dir=run", *settings, "trainer.max_steps=10000")
    wait_until(lambda: trained(tmp_path / "run") >= 3, process)
    process.kill()
    process.wait()
    overrides = (tmp_path / "run/overrides.txt").read_text()
    finish(tmp_path, "resume=run", "trainer.max_steps=12")
    output = (tmp_path / "output.txt").read_text()
    assert "run was ended before its first checkpoint: it starts anew with its own config." in output
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert (tmp_path / "run/overrides.txt").read_text() == overrides


# A disk that takes 100,000 bytes of a file, which is less than a checkpoint, then more.
UNSAVED = """
import resource, sys
from txtrain.cli import main
for limit, run in (100_000, ["run_dir=run", *sys.argv[1:]]), (resource.RLIM_INFINITY, ["resume=run"]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        print("code", main(["train", *run]), flush=True)
    except SystemExit as end:
        print("code", end.code, flush=True)
"""


@pytest.mark.slow
def test_a_run_whose_last_step_is_not_saved_says_so_by_its_exit_code(tmp_path: Path) -> None:
    settings = [*TINY, *ONE, "save.retry_for=1", "samples.length=0", f"data.cache_dir={tmp_path / 'cache'}"]
    command = [sys.executable, "-c", UNSAVED, *settings]
    done = forked.run(command, cwd=tmp_path, env=ENVIRONMENT, timeout=120)
    first, second = done.stdout.split("code 4")
    assert "No checkpoint at step 3: " in first and "Trying again to save step 12, for 1 s more" in first
    lost = r"interrupted +step 12 could not be saved \(.*File too large.*\): there is no checkpoint"
    assert re.search(lost, first), first
    assert second.endswith("code 0\n"), second
    assert json.loads((tmp_path / "run/summary.json").read_text())["state"] == "finished"


# A disk that takes 100 bytes of a file, then more.
FULL = """
import os, resource, sys
from txtrain.cli import main
for limit in (100, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    print(main(["train", "run_dir=deep/run", *sys.argv[1:]]), os.path.exists("deep"), flush=True)
"""


@pytest.mark.slow
def test_a_folder_that_was_full_when_it_was_made_is_no_run(tmp_path: Path) -> None:
    settings = [*TINY, *ONE, "trainer.max_steps=1", "samples.length=0", f"data.cache_dir={tmp_path / 'cache'}"]
    finish(tmp_path, "run_dir=first", *settings)  # fills the cache
    command = [sys.executable, "-c", FULL, *settings]
    done = forked.run(command, cwd=tmp_path, env=ENVIRONMENT, timeout=120)
    assert done.stderr == "error: run_dir=deep/run cannot be written (File too large): name another run_dir\n"
    assert done.stdout.splitlines()[0] == "1 False" and done.stdout.splitlines()[-1] == "0 True", done.stdout
