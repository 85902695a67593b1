"""Sweeps: each job in a process of its own, a table at the end, and nothing left when they are stopped."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from hydra_plugins.txtrain_launcher.launcher import command
from tests.stand_in import ROOT, make_clone, run, seen
from txtrain.compare.sweep import Job, Sweep

SWEEP = Path("runs", "gpt", "sweeps", "1")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clone(tmp_path_factory.mktemp("clone"))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / SWEEP / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_job_is_a_run_of_its_own(clone: Path, tmp_path: Path) -> None:
    ranks = {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "PL_GLOBAL_SEED": "3", "TXTRAIN_RUN_DIR": "x"}
    result = run(tmp_path, clone, "-m", "model.dropout=0.1,0.2", "model=nano", **ranks)
    assert result.returncode == 0, result.stderr
    for number, dropout in enumerate(("0.1", "0.2")):
        given = seen((tmp_path / SWEEP / f"{number}.log").read_text())
        assert given["overrides"] == [f"model.dropout={dropout}", "model=nano", f"run_dir='{SWEEP / str(number)}'"]
        assert given["dropout"] == float(dropout)
        assert given["environment"]["TXTRAIN_SWEEP"] == "1"
        assert given["environment"]["TXTRAIN_JOB"] == f"{number} model.dropout={dropout}"
        assert not ranks.keys() & given["environment"].keys()
    assert [row["model.dropout"] for row in table(tmp_path)] == ["0.1", "0.2"]
    assert [row["validation_loss"] for row in table(tmp_path)] == ["2.1", "2.2"]
    assert "model" not in table(tmp_path)[0]  # the same in all jobs
    assert "0    0.1            2.1000           1,000     1 MiB        2,000                 finished" in result.stdout


def test_a_failed_job_stops_no_sweep(clone: Path, tmp_path: Path) -> None:
    result = run(tmp_path, clone, "seed=1,0,2", "-m")
    assert (result.returncode, result.stderr) == (1, "")
    assert [row["state"] for row in table(tmp_path)] == ["failed", "finished", "failed"]
    assert "RuntimeError: exploded" in (tmp_path / SWEEP / "0.log").read_text()
    assert f"failed, see {SWEEP / '0.log'}" in result.stdout
    assert f"job 2 seed=2: failed, error: seed=2 cannot be: type seed=0 (see {SWEEP / '2.log'})" in result.stdout
    assert result.stdout.count("trainable parameters") == 1


def test_batches_of_a_sweeper_make_one_table(clone: Path, tmp_path: Path) -> None:
    result = run(tmp_path, clone, "-m", "model.dropout=0.1,0.2,0.3", "hydra.sweeper.max_batch_size=1")
    assert result.stdout.count("trainable parameters") == 1
    assert [row["job"] for row in table(tmp_path)] == ["0", "1", "2"]


def test_values_keep_their_quotes_and_flags_are_passed_on(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "own.yaml").write_text((clone.parent / "conf" / "model" / "wide.yaml").read_text())
    arguments = ["--config-dir", "mine", "model=own", "name='a b','c,d'", "hydra.sweep.dir='runs/it\\'s (1)'"]
    result = run(tmp_path, clone, "-m", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "runs" / "it's (1)" / "1" / "summary.json").is_file()


def test_jobs_run_side_by_side(clone: Path, tmp_path: Path) -> None:
    result = run(tmp_path, clone, "-m", "model.dropout=0.1,0.2", "hydra.launcher.parallel_jobs=2")
    events = [
        line.split(":")[1].split(",")[0]
        for line in result.stdout.splitlines()
        if line.startswith("job 0 ") or line.startswith("job 1 ")
    ]
    assert events == [" started", " started", " finished", " finished"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_sweep_ends_all_its_processes(number: signal.Signals, clone: Path, tmp_path: Path) -> None:
    sweep = subprocess.Popen(
        [sys.executable, str(clone), "-m", "seed=3", "model.dropout=0.1,0.2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / SWEEP / "0.log"
    while not log.is_file() or "processes" not in log.read_text():
        assert sweep.poll() is None
        time.sleep(0.1)
    line = next(line for line in log.read_text().splitlines() if line.startswith("processes"))
    sweep.send_signal(number)
    _, errors = sweep.communicate(timeout=60)
    assert (sweep.returncode, errors) == (128 + number, "")
    for process in map(int, line.split()[1:]):  # the job and its rank, which ignores Ctrl-C
        assert not alive(process)
    assert not (tmp_path / SWEEP / "1.log").exists()


def alive(process: int) -> bool:
    """Whether a process runs; one that nobody has waited for has ended all the same."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_real_jobs_take_different_numbers_of_devices(tmp_path: Path) -> None:
    text = ROOT / "tests" / "golden" / "text.txt"
    arguments = [
        "data=text",
        f"data.path={text}",
        "tokenizer=byte",
        "data.seq_len=32",
        f"data.cache_dir={tmp_path}/cache",
    ]
    arguments += ["model.dim=32", "model.num_layers=1", "model.num_heads=2", "logger=none", "hydra.sweep.dir=sweep"]
    arguments += [
        "trainer.max_steps=2",
        "trainer.limit_val_batches=2",
        "trainer.accelerator=cpu",
        "trainer.devices=1,2",
    ]
    result = run(tmp_path, ROOT / "train.py", "-m", *arguments)
    assert result.returncode == 0, result.stdout
    losses = [
        json.loads((tmp_path / "sweep" / number / "summary.json").read_text())["validation_loss"]
        for number in ("0", "1")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["0", "0.log", "1", "1.log"] + [
        "multirun.yaml",
        "sweep.csv",
    ]


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_optuna_sweeper") is None, reason="needs txtrain[optuna]")
@pytest.mark.parametrize("seeds, states", [("0", {"finished"}), ("1", {"failed"})])
def test_optuna_minimises_the_validation_loss(seeds: str, states: set[str], clone: Path, tmp_path: Path) -> None:
    arguments = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", f"seed={seeds}"]
    result = run(tmp_path, clone, "-m", *arguments, "model.dropout=interval(0.1,0.9)")
    assert "Traceback" not in result.stderr
    assert {row["state"] for row in table(tmp_path)} == states
    best = yaml.safe_load((tmp_path / SWEEP / "optimization_results.yaml").read_text())["best_value"]
    losses = [float(row["validation_loss"] or math.inf) for row in table(tmp_path)]
    assert (len(losses), best) == (3, min(losses))


def test_without_its_package_optuna_names_it(clone: Path, tmp_path: Path) -> None:
    if find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        result = run(tmp_path, clone, "-m", "hydra/sweeper=optuna", "seed=0,1")
        assert result.stderr == (
            "error: hydra/sweeper=optuna needs a package that is not installed: type pip install 'txtrain[optuna]'\n"
        )


@pytest.mark.parametrize(
    "typed, arguments, job",
    [
        (["train.py", "-m", "a=1,2"], ["-m", "a=1,2"], ["train.py"]),
        (["-m", "txtrain", "train", "-m", "a=1,2"], ["-m", "a=1,2"], ["-m", "txtrain", "train"]),
        (
            ["-X", "dev", "/bin/txtrain", "train", "a=1,2", "-m"],
            ["-m", "a=1,2"],
            ["-X", "dev", "/bin/txtrain", "train"],
        ),
        (
            ["train.py", "-cd", "my", "-m", "hydra/sweeper=x"],
            ["-cd", "my", "-m", "hydra/sweeper=x"],
            ["train.py", "-cd", "my"],
        ),
    ],
)
def test_a_job_is_started_as_the_sweep_was(
    typed: list[str], arguments: list[str], job: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", *typed])
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    assert command() == [sys.executable, *job]


def test_no_loss_is_the_worst_loss() -> None:
    job = Job(number=0, overrides={}, directory=Path("x"))
    assert job.loss == math.inf
    for value in (math.nan, math.inf, None):
        job.summary = {"validation_loss": value}
        assert job.loss == math.inf


def test_a_sweep_that_never_began_removes_only_what_it_made(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    sweep = Sweep(tmp_path / "runs" / "gpt" / "sweeps")
    sweep.directory.mkdir(parents=True)
    (sweep.directory / "multirun.yaml").touch()
    sweep.discard_unused()
    assert os.listdir(tmp_path) == ["runs"]
    assert os.listdir(tmp_path / "runs") == []
