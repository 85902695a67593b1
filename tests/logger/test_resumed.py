"""Runs that are killed and go on: a logger shows each step once."""

import csv
import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.callbacks.tiny import Run
from tests.logger.killed import SETTINGS, killed_run, new_loggers
from tests.logger.server import Server, serving
from tests.offline_wandb import OfflineRun, read
from txtrain.logger import close_loggers
from txtrain.saving import find_checkpoint

pytestmark = pytest.mark.usefixtures("no_wandb_account")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


def resume(run_dir: Path, logger: str, **settings: Any) -> Run:
    checkpoint = find_checkpoint(run_dir)
    assert checkpoint is not None and checkpoint.name == "step_00000004.ckpt"
    run = Run(run_dir, **SETTINGS | settings, loggers=new_loggers(run_dir, logger)).fit(checkpoint)
    close_loggers(run.trainer.loggers)
    return run


def segments(run_dir: Path) -> list[OfflineRun]:
    return [read(path, timeout=0.5) for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))]


def steps(run: OfflineRun) -> list[int]:
    return [row["_step"] for row in run.history]


def test_offline_segments_of_a_killed_run_share_the_id_and_no_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, server: Server
) -> None:
    caplog.set_level(logging.INFO)
    run_dir = tmp_path / "run"
    killed_run(run_dir, "wandb", 7, padding=40_000)
    before = segments(run_dir)[0]
    assert steps(before) in ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6])
    (run_dir / "wandb_id").unlink()  # the checkpoint has it
    resume(run_dir, "wandb")
    first, second = segments(run_dir)
    assert first.id == second.id == before.id
    assert first.history == before.history[:4]
    assert steps(second) == [5, 6, 7, 8, 9]
    assert (first.exit_code, second.exit_code) == (None, 0)
    assert [row["_step"] for row in second.history if "samples/nrows" in row] == [8, 9]

    send(caplog.messages[-1].partition("send it with: ")[2], server, tmp_path)
    sent = server.runs[first.id]
    assert [(row["_step"], row["train/loss"]) for row in sent.rows] == [
        (row["_step"], row["train/loss"]) for row in (*first.history, *second.history)
    ]
    assert sent.exit_codes == [1, 0]  # killed, then finished


@pytest.mark.parametrize("step", [4, 7])
def test_what_was_not_written_when_a_run_was_killed_is_logged_when_it_goes_on(
    tmp_path: Path, step: int, caplog: pytest.LogCaptureFixture, server: Server
) -> None:
    caplog.set_level(logging.INFO)
    killed_run(tmp_path / "run", "wandb", step)
    assert [steps(segment) for segment in segments(tmp_path / "run")] == [[]]
    resume(tmp_path / "run", "wandb")
    (segment,) = segments(tmp_path / "run")  # the other one had nothing whole
    assert steps(segment) == list(range(1, 10))
    assert all("train/loss" in row for row in segment.history)
    assert [row["_step"] for row in segment.history if "validation/loss" in row] == [4, 8, 9]
    send(caplog.messages[-1].partition("send it with: ")[2], server, tmp_path)
    assert server.runs[segment.id].steps == list(range(1, 10))


def send(command: str, server: Server, folder: Path) -> None:
    """Runs what the last line says to; wandb leaves a log in the folder."""
    account = {"WANDB_API_KEY": "k" * 40, "WANDB_BASE_URL": server.url}
    words = [str(Path(sys.executable).with_name("wandb")), *shlex.split(command)[1:]]
    environment = {**os.environ, **account}
    run = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("Finished syncing") == len(words) - 2, run.stderr


def test_online_a_killed_run_sends_each_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    killed_run(tmp_path / "run", "wandb", 7)
    time.sleep(1)  # the process that sends outlives the run a little
    (name,) = server.runs
    assert server.runs[name].steps in (list(range(1, last + 1)) for last in range(8))
    resume(tmp_path / "run", "wandb")
    assert list(server.runs) == [name]
    assert server.runs[name].steps == list(range(1, 10))


def test_a_run_that_had_no_logger_brings_its_rows(tmp_path: Path) -> None:
    killed_run(tmp_path / "run", "none", 7)
    resume(tmp_path / "run", "wandb")
    (segment,) = segments(tmp_path / "run")
    assert steps(segment) == list(range(1, 10))
    assert [row["_step"] for row in segment.history if "validation/loss" in row] == [4, 8, 9]


@pytest.mark.parametrize("before", ["tensorboard", "none"])
def test_tensorboard_shows_each_step_once(tmp_path: Path, before: str) -> None:
    killed_run(tmp_path / "run", before, 7)
    time.sleep(1)  # TensorBoard orders files by the second in their names, and no process starts within one
    resume(tmp_path / "run", "tensorboard")
    shown = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.step for event in shown.Scalars("train/loss")] == list(range(1, 10))
    assert [event.step for event in shown.Scalars("validation/loss")] == [4, 8, 9]


@pytest.mark.parametrize("names", ["wandb,tensorboard", "wandb,csv"])
def test_several_loggers_show_each_step_once(tmp_path: Path, names: str) -> None:
    run_dir = tmp_path / "run"
    killed_run(run_dir, names, 7)
    time.sleep(1)
    resume(run_dir, names)
    assert [step for segment in segments(run_dir) for step in steps(segment)] == list(range(1, 10))
    if "csv" in names:
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        table = list(csv.DictReader((run_dir / "metrics.csv").read_text().splitlines()))
        assert [{name: float(value) for name, value in line.items() if value} for line in table] == rows
    else:
        shown = EventAccumulator(str(run_dir / "tensorboard")).Reload()
        assert [event.step for event in shown.Scalars("train/loss")] == list(range(1, 10))
