"""When checkpoints appear in a run, and what happens when they cannot."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning import Callback
from safetensors import SafetensorError
from safetensors.torch import save_file

from tests.callbacks.tiny import Run
from txtrain.saving import checkpoint_step, list_checkpoints, read_state


def steps(run_dir: Path) -> list[int]:
    return [checkpoint_step(path) for path in list_checkpoints(run_dir / "checkpoints")]


class Losses(Callback):
    """Gives validations the losses of a list."""

    def __init__(self, *losses: float) -> None:
        self.losses = iter(losses)

    def on_validation_epoch_end(self, trainer: Any, task: Any) -> None:
        task.on_validation_epoch_end = lambda: setattr(task, "validation", {"validation/loss": next(self.losses)})


def test_every_so_many_steps_and_at_the_last(tmp_path: Path) -> None:
    Run(tmp_path, every=4, keep=9).fit()
    assert steps(tmp_path) == [10, 8, 4]
    assert (tmp_path / "checkpoints/last").resolve().name == "step_00000010.ckpt"


def test_the_best_by_validation_loss_outlives_newer_ones(tmp_path: Path) -> None:
    Run(tmp_path, every=100, keep=1, validate=2, extra=[Losses(3.0, 2.0, 2.5, math.nan, 2.1)]).fit()
    assert steps(tmp_path) == [10, 4]
    assert read_state(tmp_path / "checkpoints/best")["global_step"] == 4


def test_every_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, every="3min", keep=9)
    one_step_a_minute = SimpleNamespace(monotonic=lambda: 60.0 * run.trainer.global_step)
    monkeypatch.setattr("txtrain.callbacks.checkpoints.time", one_step_a_minute)
    run.fit()
    assert steps(tmp_path) == [10, 9, 6, 3]


def test_training_goes_on_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if "00000004" in str(path):
            path.write_text("half of it")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    monkeypatch.setattr("txtrain.saving.tensors.save_file", full)
    run = Run(tmp_path, every=2, keep=9).fit()
    assert run.trainer.global_step == 10
    assert steps(tmp_path) == [10, 8, 6, 2]
    assert "No checkpoint at step 4" in caplog.text
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.glob("checkpoints/*.partial"))


def test_training_goes_on_when_there_can_be_no_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    run = Run(tmp_path, max_steps=2, validate=2).fit()
    assert run.trainer.global_step == 2
    assert "No checkpoint at step 2" in caplog.text
    assert run.summary.finish(run.trainer, run.task)["state"] == "finished"


def test_what_a_killed_process_left_half_written_goes_away(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints/step_00000007.ckpt.partial"
    left.parent.mkdir()
    left.write_text("half of it")
    Run(tmp_path, max_steps=1).fit()
    assert not left.exists()
