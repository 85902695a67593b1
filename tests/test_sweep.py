"""Sweeps: each job in a process of its own, a table at the end, nothing left when they are stopped, and going on."""

import csv
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from hydra_plugins.txtrain_launcher import launcher
from hydra_plugins.txtrain_launcher.launcher import command
from hydra_plugins.txtrain_launcher.slurm import SlurmLauncher
from tests.stand_in import ENVIRONMENT, ROOT, make_clone, run, seen
from txtrain import trust
from txtrain.compare.sweep import Job, Sweep
from txtrain.errors import UserError
from txtrain.saving.manifest import write_manifest
from txtrain.saving.parts import write_part

SWEEP = Path("runs", "gpt", "sweeps", "1")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clone(tmp_path_factory.mktemp("clone"))


def run_by_slurm(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """One of SLURM's commands, which fails where it is not installed as where it finds no cluster."""
    command = arguments if shutil.which(arguments[0]) else ("false",)
    return subprocess.run(command, capture_output=True, timeout=60)


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / SWEEP / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_job_is_a_run_of_its_own(clone: Path, tmp_path: Path) -> None:
    ranks = {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "PL_GLOBAL_SEED": "3", "TXTRAIN_RUN_DIR": "x"}
    typed = ["-m", "model.dropout=0.1,0.2", "trust=[mine, others.norms]", "model=nano"]
    result = run(tmp_path, clone, *typed, **ranks)
    assert result.returncode == 0, result.stderr
    for number, dropout in enumerate(("0.1", "0.2")):
        given = seen((tmp_path / SWEEP / f"{number}.log").read_text())
        own = [f"model.dropout={dropout}", "model=nano", "trust=[mine,others.norms]"]
        assert given["overrides"] == [*own, f"run_dir='{SWEEP / str(number)}'"]
        assert given["dropout"] == float(dropout)
        assert given["environment"]["TXTRAIN_SWEEP"] == "1"
        assert given["environment"]["TXTRAIN_JOB"] == f"{number} model.dropout={dropout}"
        assert not ranks.keys() & given["environment"].keys()
    assert [row["model.dropout"] for row in table(tmp_path)] == ["0.1", "0.2"]
    assert [row["validation_loss"] for row in table(tmp_path)] == ["2.1", "2.2"]
    assert "model" not in table(tmp_path)[0]  # the same in all jobs
    assert "0    0.1            2.10000          1,000     1 MiB        2,000                 finished" in result.stdout


@pytest.mark.parametrize("goes_on", [False, True])
def test_what_slurm_runs_again_trusts_what_was_typed(
    goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM repeats the script of a job whose time was over: the words in it are all that it knows."""
    monkeypatch.setattr(launcher, "_has_checkpoint", lambda _: goes_on)
    options = {"array_parallelism": 1, "retry_failed": False, "poll_seconds": 1.0, "signal_delay_s": 1, "setup": []}
    slurm = SlurmLauncher(**options, additional_parameters={})
    slurm.sweep = Sweep(tmp_path)
    job = slurm.sweep.add(["norm._target_=mine.Norm", "trust=[sly]"], number=0)
    job.directory.mkdir()
    trust.trust(["mine"])
    try:
        script = slurm._script(job, slurm.begin(job), {})
    finally:
        trust.trust(())
    [line] = [line for line in script.splitlines() if line.startswith("srun ")]
    assert "trust=[mine]" in shlex.split(line) and "sly" not in line


def test_a_failed_job_stops_no_sweep(clone: Path, tmp_path: Path) -> None:
    result = run(tmp_path, clone, "seed=1,0,2", "-m")
    assert (result.returncode, result.stderr) == (1, "")
    assert [row["state"] for row in table(tmp_path)] == ["failed", "finished", "failed"]
    assert "RuntimeError: exploded" in (tmp_path / SWEEP / "0.log").read_text()
    assert f"failed, see {SWEEP / '0.log'}" in result.stdout
    assert f"job 2 seed=2: failed, error: seed=2 cannot be: type seed=0 (see {SWEEP / '2.log'})" in result.stdout
    assert result.stdout.count("trainable parameters") == 1


def test_batches_of_a_sweeper_make_one_table(clone: Path, tmp_path: Path) -> None:
    result = run(tmp_path, clone, "-m", "model.dropout=0.1,0.2", "hydra.sweeper.max_batch_size=1")
    assert result.stdout.count("trainable parameters") == 1
    assert [row["job"] for row in table(tmp_path)] == ["0", "1"]


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


def start(folder: Path, entry: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(entry), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def processes_of(sweep: subprocess.Popen[str], log: Path) -> list[int]:
    """The job that has this log, once it waits to be stopped, and its rank, which ignores Ctrl-C."""
    while not log.is_file() or "\nprocesses" not in log.read_text():
        assert sweep.poll() is None
        time.sleep(0.1)
    line = next(line for line in log.read_text().splitlines() if line.startswith("processes"))
    return [int(process) for process in line.split()[1:]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_sweep_ends_all_its_processes(number: signal.Signals, clone: Path, tmp_path: Path) -> None:
    sweep = start(tmp_path, clone, "-m", "seed=3", "model.dropout=0.1,0.2")
    processes = processes_of(sweep, tmp_path / SWEEP / "0.log")
    sweep.send_signal(number)
    _, errors = sweep.communicate(timeout=60)
    assert (sweep.returncode, errors) == (128 + number, "told to end by SIGTERM\n" if number == signal.SIGTERM else "")
    assert not any(map(alive, processes))
    assert not (tmp_path / SWEEP / "1.log").exists()


def test_a_stopped_sweep_goes_on_by_the_command_that_it_printed(clone: Path, tmp_path: Path) -> None:
    sweep = start(tmp_path, clone, "-m", "seed=0,1,3")
    processes_of(sweep, tmp_path / SWEEP / "2.log")
    second = run(tmp_path, clone, "-m", "seed=0,1,3")
    assert second.stderr.startswith(f"error: hydra.sweep.dir={SWEEP} is being run by another process")
    sweep.send_signal(signal.SIGINT)
    output, _ = sweep.communicate(timeout=60)
    assert [row["state"] for row in table(tmp_path)] == ["finished", "failed", "interrupted"]
    (tmp_path / SWEEP / "2").mkdir()
    (tmp_path / SWEEP / "2" / "config.yaml").write_text("of a run that was stopped before its first checkpoint")

    (tmp_path / "end").touch()
    go_on = shlex.split(output.splitlines()[-1].removeprefix("go on: "))
    result = subprocess.run(go_on, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (1, "")
    assert "job 0 seed=0: finished before" in result.stdout
    assert "job 1 seed=1: failed before" in result.stdout
    assert [row["state"] for row in table(tmp_path)] == ["finished", "failed", "finished"]
    assert [row["validation_loss"] for row in table(tmp_path)] == ["2.0", "", "2.0"]
    assert (tmp_path / SWEEP / "2.before" / "config.yaml").exists()

    again = shlex.split(result.stdout.splitlines()[-1].removeprefix("try the failed jobs again: "))
    subprocess.run(again, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=120)
    starts = [(tmp_path / SWEEP / f"{number}.log").read_text().count("seen {") for number in range(3)]
    assert starts == [1, 2, 2]

    other = run(tmp_path, clone, "-m", "seed=0,2,3", f"hydra.sweep.dir={SWEEP}")
    assert other.stderr.startswith(
        f"error: hydra.sweep.dir={SWEEP} has another sweep, whose job 1 was started with seed=1"
    )
    assert other.stderr.count("\n") == 1


def test_a_job_outlives_a_killed_sweep_only_to_save_and_is_not_started_twice(clone: Path, tmp_path: Path) -> None:
    sweep = start(tmp_path, clone, "-m", "seed=choice(3)")
    job, rank = processes_of(sweep, tmp_path / SWEEP / "0.log")
    sweep.kill()
    sweep.communicate(timeout=60)
    while alive(job):  # told to end by the death of the sweep; its rank ignores that
        time.sleep(0.1)
    checkpoint(tmp_path / SWEEP / "0")

    again = start(tmp_path, clone, "-m", "seed=choice(3)", f"hydra.sweep.dir={SWEEP}")
    assert again.stdout is not None
    assert again.stdout.readline() == "job 0 seed=3: still runs since before, waiting for its end\n"
    assert (tmp_path / SWEEP / "0.log").read_text().count("seen {") == 1
    (tmp_path / "end").touch()
    os.kill(rank, signal.SIGKILL)
    output, _ = again.communicate(timeout=60)
    assert output.startswith("job 0 seed=3: goes on, output in ")
    given = seen((tmp_path / SWEEP / "0.log").read_text().partition("processes")[2])
    assert given["resume"] == str(SWEEP / "0")
    assert given["overrides"] == [f"resume='{SWEEP / '0'}'"]  # the run's own config has the rest
    assert [row["state"] for row in table(tmp_path)] == ["finished"]


def checkpoint(run_dir: Path) -> None:
    """A run directory with a whole checkpoint of nothing."""
    folder = run_dir / "checkpoints" / "step_00000001.ckpt"
    folder.mkdir(parents=True)
    write_manifest(
        folder, step=1, ranks=1, strategy="OneDevice", parts=write_part(folder, rank=0, tensors={}, state=b"")
    )
    config = {"name": "gpt", "seed": 3, "run_dir": str(run_dir), "resume": None, "init_from": None}
    config["model"] = {"_target_": "txtrain.train.Model", "dropout": 0.25}
    config["trainer"] = {"_target_": "txtrain.train.Trainer", "accelerator": "cpu", "devices": 1, "num_nodes": 1}
    (run_dir / "config.yaml").write_text(json.dumps(config))


def alive(process: int) -> bool:
    """Whether a process runs; one that nobody has waited for has ended all the same."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def real(folder: Path) -> list[str]:
    """The command line of runs that take no time."""
    text = ROOT / "tests" / "golden" / "text.txt"
    arguments = ["-m", "data=text", f"data.path={text}", "tokenizer=byte", "data.seq_len=32", "logger=none"]
    arguments += [f"data.cache_dir={folder}/cache", "model.dim=32", "model.num_layers=1", "model.num_heads=2"]
    return [*arguments, "trainer.limit_val_batches=2", "trainer.accelerator=cpu", "hydra.sweep.dir=sweep"]


def losses(folder: Path) -> list[float]:
    return [
        json.loads((folder / "sweep" / number / "summary.json").read_text())["validation_loss"] for number in ("0", "1")
    ]


@pytest.mark.slow
def test_real_jobs_take_different_numbers_of_devices(tmp_path: Path) -> None:
    arguments = [*real(tmp_path), "trainer.max_steps=2", "trainer.devices=1,2"]
    result = run(tmp_path, ROOT / "train.py", *arguments)
    assert result.returncode == 0, result.stdout
    alone, together = losses(tmp_path)
    assert alone == pytest.approx(together, rel=1e-5)
    names = ["0", "0.log", "1", "1.log", "jobs.json", "multirun.yaml", "sweep.csv"]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == names


@pytest.mark.slow
@pytest.mark.skipif(run_by_slurm("sinfo", "--noheader").returncode != 0, reason="needs a SLURM cluster (sinfo)")
def test_jobs_of_slurm_take_different_numbers_of_devices_and_are_not_repeated(tmp_path: Path) -> None:
    arguments = [*real(tmp_path), "trainer.max_steps=2", "trainer.devices=1,2", "hydra/launcher=submitit_slurm"]
    arguments += ["hydra.launcher.poll_seconds=1", "hydra.launcher.timeout_min=5"]
    first, again = (run(tmp_path, ROOT / "train.py", *arguments) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stdout
    alone, together = losses(tmp_path)
    assert alone == pytest.approx(together, rel=1e-5)
    assert "--ntasks-per-node=2" in (tmp_path / "sweep" / "1.sh").read_text()
    assert "job 1 trainer.devices=2: finished before" in again.stdout


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


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hydra_plugins.hydra_optuna_sweeper") is None, reason="needs txtrain[optuna]")
def test_a_study_in_a_database_goes_on_after_a_kill(clone: Path, tmp_path: Path) -> None:
    arguments = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", "hydra.sweeper.storage=sqlite:///study.db"]
    arguments += ["hydra.sweeper.study_name=s", "seed=3", "model.dropout=interval(0.1,0.9)"]
    sweep = start(tmp_path, clone, *arguments, "hydra.sweeper.n_trials=2")
    rank = processes_of(sweep, tmp_path / SWEEP / "0.log")[1]
    sweep.kill()
    sweep.communicate(timeout=60)
    os.kill(rank, signal.SIGKILL)
    (tmp_path / "end").touch()
    result = run(tmp_path, clone, *arguments, "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={SWEEP}")
    assert result.returncode == 0, result.stderr
    rows = table(tmp_path)
    assert [row["job"] + row["state"] for row in rows] == ["0interrupted", "1finished", "2finished"]
    assert len({row["model.dropout"] for row in rows}) == 3
    best = yaml.safe_load((tmp_path / SWEEP / "optimization_results.yaml").read_text())["best_value"]
    assert best == min(float(row["validation_loss"]) for row in rows[1:])


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


def recorded(folder: Path, *jobs: list[str]) -> Sweep:
    """A sweep that an earlier process has written down."""
    sweep = Sweep(folder)
    for number, overrides in enumerate(jobs):
        sweep.add(overrides, number=number)
    sweep.write()
    return Sweep(folder)


def test_a_sweep_goes_on_with_other_devices_but_trains_the_same(tmp_path: Path) -> None:
    jobs = ["norm=pre", "trainer.devices=2"], ["norm=post", "trainer.devices=2"]
    sweep = recorded(tmp_path, *jobs)
    first, second = (sweep.add([job[0], "trainer.devices=1"], number=number) for number, job in enumerate(jobs))
    assert (first.number, first.overrides["trainer.devices"], second.number) == (0, "1", 1)
    for overrides in (["norm=post"], ["norm=pre", "trainer.max_steps=9"], ["norm=pre", "lora.rank=8"]):
        with pytest.raises(UserError, match=r"whose job 0 was started with"):
            recorded(tmp_path, *jobs).add([*overrides, "trainer.devices=2"], number=0)


def test_what_tells_jobs_apart_does_not_change(tmp_path: Path) -> None:
    sweep = recorded(tmp_path, ["trainer.devices=1"], ["trainer.devices=2"])
    with pytest.raises(UserError, match=r"whose job 0 was started with trainer\.devices=1: type"):
        sweep.add(["trainer.devices=2"], number=0)


def test_what_a_sweeper_proposes_has_a_number_of_its_own(tmp_path: Path) -> None:
    sweep = recorded(tmp_path, ["optimizer.lr=0.1"], ["optimizer.lr=0.2"])
    proposals = "0.3", "0.2", "0.2"  # one of them for the first time since the sweep goes on, and then once more
    assert [sweep.add([f"optimizer.lr={lr}"]).number for lr in proposals] == [2, 1, 3]


@pytest.mark.parametrize(
    "returncode, summary, state",
    [
        (0, "finished", "finished"),
        (0, None, "finished"),
        (1, None, "failed"),
        (1, "finished", "failed"),
        (130, "interrupted", "interrupted"),
        (143, None, "interrupted"),
        (-9, None, "interrupted"),
        (-11, None, "failed"),
        (None, None, "interrupted"),
        (None, "finished", "finished"),
        (None, "failed", "failed"),
    ],
)
def test_how_a_job_ended(returncode: int | None, summary: str | None, state: str, tmp_path: Path) -> None:
    job = Job(number=0, overrides={}, directory=tmp_path)
    if summary:
        (tmp_path / "summary.json").write_text(json.dumps({"state": summary}))
    job.end(returncode)
    assert job.state == state


@pytest.mark.parametrize(
    "before, summary, state",
    [
        ("waiting", None, "waiting"),
        ("interrupted", None, "interrupted"),
        ("interrupted", "finished", "finished"),  # resumed by hand meanwhile
        ("finished", "finished", "finished"),
        ("finished", None, "waiting"),  # a dry run
        ("failed", None, "failed"),
        ("running", "interrupted", "interrupted"),
    ],
)
def test_what_an_earlier_run_left(before: str, summary: str | None, state: str, tmp_path: Path) -> None:
    job = Job(number=0, overrides={}, directory=tmp_path, state=before)
    if summary:
        (tmp_path / "summary.json").write_text(json.dumps({"state": summary}))
    job.look()
    assert job.state == state
