"""When checkpoints appear in a run, and what happens when they cannot."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning import Callback
from safetensors import SafetensorError
from safetensors.torch import save_file

from tests.callbacks.tiny import Run
from txtrain.callbacks.checkpoints import Checkpoints
from txtrain.saving import Save, checkpoint_step, list_checkpoints, read_state


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


def test_training_goes_on_when_there_can_be_no_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    run = Run(tmp_path, max_steps=2, validate=2)
    run.checkpoints.save = Save(retry_for=0)
    run.fit()
    assert run.trainer.global_step == 2
    assert "No checkpoint at step 2" in caplog.text
    lost = run.checkpoints.lost(run.trainer)
    assert lost and lost.startswith("step 2 could not be saved (") and lost.endswith("): there is no checkpoint")


def test_the_last_step_is_tried_again_and_stays_the_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full until the third attempt, in a run that saves in the background."""
    monkeypatch.setattr("txtrain.callbacks.checkpoints.WAITS", (0.01,))
    full = tmp_path / "checkpoints"
    full.write_text("a file")
    run = Run(tmp_path, max_steps=2, validate=2)
    run.checkpoints.save = Save(retry_for=60, background=True)
    saved = run.checkpoints._save

    def make_room(*arguments: Any, **options: Any) -> None:
        if caplog.text.count("Trying again to save step 2") == 2:
            full.unlink(missing_ok=True)
        saved(*arguments, **options)

    monkeypatch.setattr(run.checkpoints, "_save", make_room)
    run.fit()
    assert run.checkpoints.lost(run.trainer) is None
    assert caplog.text.count("No checkpoint at step 2") == 2
    assert {name: (full / name).readlink().name for name in ("last", "best")} == dict.fromkeys(
        ("last", "best"), "step_00000002.ckpt"
    )
    state = read_state(full / "best")["callbacks"]["Checkpoints"]
    assert state["best"] == run.task.validation["validation/loss"] and state["best_step"] == 2


def test_within_training_it_is_tried_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute later, not only at the next place."""

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if "00000002" in str(path):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    monkeypatch.setattr("txtrain.saving.tensors.save_file", full)
    run = Run(tmp_path, every=2, keep=9, max_steps=7)
    one_step_in_12_s = SimpleNamespace(monotonic=lambda: 12.0 * run.trainer.global_step)
    monkeypatch.setattr("txtrain.callbacks.checkpoints.time", one_step_in_12_s)
    run.checkpoints.save = Save(every=100, keep=9)
    monkeypatch.setattr(run.checkpoints, "_is_due", partial(_is_due, run.checkpoints))
    run.fit()
    assert steps(tmp_path) == [7, 5]


def _is_due(checkpoints: Any, trainer: Any) -> bool:
    """At step 2, which fails, and then as ever."""
    return trainer.global_step == 2 or Checkpoints._is_due(checkpoints, trainer)


def test_what_a_killed_process_left_half_written_goes_away(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints/step_00000007.ckpt.partial"
    left.parent.mkdir()
    left.write_text("half of it")
    Run(tmp_path, max_steps=1).fit()
    assert not left.exists()
