"""Checkpoints that are written while training goes on are the same, appear whole, and may fail without ending it."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.callbacks.test_checkpoints import Losses
from tests.callbacks.tiny import Run
from txtrain.callbacks.checkpoints import Checkpoints
from txtrain.saving import Reader, Save, checkpoint_step, list_checkpoints


def in_background(run_dir: Path, **settings: Any) -> Run:
    run = Run(run_dir, **settings)
    (checkpoints,) = [found for found in run.trainer.callbacks if isinstance(found, Checkpoints)]
    checkpoints.save = Save(every=2, keep=9, background=True)
    return run


def tensors(path: Path) -> dict[str, torch.Tensor]:
    reader = Reader(path)
    return {name: reader[name] for name in reader.names()}


def steps(run_dir: Path) -> list[int]:
    return [checkpoint_step(path) for path in list_checkpoints(run_dir / "checkpoints")]


def test_the_files_are_those_of_the_moment_of_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though weights have moved on when they are written: each write waits until two more steps were made."""
    Run(tmp_path / "plain", every=2, keep=9).fit()
    run = in_background(tmp_path / "background")
    moved_on = threading.Event()

    def late(content: Any, path: Path, metadata: Any) -> None:
        if "00000004" in str(path):
            assert moved_on.wait(60)
        save_file(content, path)

    def note(trainer: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            moved_on.set()

    monkeypatch.setattr("txtrain.saving.tensors.save_file", late)
    monkeypatch.setattr(run.task, "on_train_batch_end", lambda *_: note(run.trainer), raising=False)
    run.fit()
    assert steps(tmp_path / "background") == steps(tmp_path / "plain") == [10, 8, 6, 4, 2]
    for path in list_checkpoints(tmp_path / "plain/checkpoints"):
        plain, other = tensors(path), tensors(tmp_path / "background/checkpoints" / path.name)
        assert all(torch.equal(tensor, other[name]) for name, tensor in plain.items())


def test_a_full_disk_is_told_and_the_next_one_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(content: Any, path: Path, metadata: Any) -> None:
        if "00000004" in str(path):
            raise OSError(28, "No space left on device")
        save_file(content, path)

    monkeypatch.setattr("txtrain.saving.tensors.save_file", full)
    run = in_background(tmp_path).fit()
    assert run.trainer.global_step == 10
    assert steps(tmp_path) == [10, 8, 6, 2]
    assert "No space left on device. Training goes on, and it is tried again." in caplog.text
    assert not list(tmp_path.glob("checkpoints/*.partial"))


def test_a_best_one_that_was_not_written_does_not_keep_the_next_from_being_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: Any, path: Path, metadata: Any) -> None:
        if "00000004" in str(path):
            raise OSError(28, "No space left on device")
        save_file(content, path)

    monkeypatch.setattr("txtrain.saving.tensors.save_file", full)
    in_background(tmp_path, validate=2, extra=[Losses(3.0, 1.0, 2.0, 2.5, 2.6)]).fit()
    assert (tmp_path / "checkpoints/best").resolve().name == "step_00000006.ckpt"
