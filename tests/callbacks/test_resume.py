"""A run that was stopped and resumed is, bit for bit, the run that was not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from tests.callbacks.tiny import Run
from txtrain.saving import find_checkpoint, read_state


class Stop(Callback):
    """Dies `step` steps later, in the last micro-batch of the next one."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, index: int) -> None:
        if trainer.global_step == self.step and (index + 1) % trainer.accumulate_grad_batches == 0:
            raise RuntimeError("killed")


def rows(run_dir: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on time and machine."""
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    measured = ("train/tokens_per_second", "train/memory_bytes", "seconds")
    return [{name: value for name, value in row.items() if name not in measured} for row in found]


@pytest.mark.parametrize("accumulation, validate", [(1, None), (1, 3), (2, 1)])
def test_resume_is_exact(tmp_path: Path, accumulation: int, validate: int | None) -> None:
    """Stopped within an epoch of four steps, at its end and after it; right before, at and after a validation."""
    settings: dict[str, Any] = {"accumulation": accumulation, "validate": validate, "every": 1}
    whole = Run(tmp_path / "whole", **settings).fit()
    for stopped in (2, 3, 4, 5):
        run_dir = tmp_path / str(stopped)
        with pytest.raises(RuntimeError, match="killed"):
            Run(run_dir, extra=[Stop(stopped)], **settings).fit()
        checkpoint = find_checkpoint(run_dir)
        assert checkpoint is not None
        assert checkpoint.name == f"step_{stopped:08d}.ckpt"
        resumed = Run(run_dir, **settings).fit(checkpoint)
        assert all(map(torch.equal, whole.weights(), resumed.weights()))
        assert all(map(torch.equal, whole.optimizer(), resumed.optimizer()))
        assert rows(tmp_path / "whole") == rows(run_dir)
        assert whole.task.tokens_seen == resumed.task.tokens_seen


@pytest.mark.parametrize("first, validate", [(4, None), (4, 2), (5, 2), (6, 3)])
def test_a_finished_run_goes_on_when_given_more_steps(tmp_path: Path, first: int, validate: int | None) -> None:
    whole = Run(tmp_path / "whole", validate=validate).fit()
    Run(tmp_path / "parts", max_steps=first, validate=validate).fit()
    resumed = Run(tmp_path / "parts", validate=validate).fit(find_checkpoint(tmp_path / "parts"))
    assert all(map(torch.equal, whole.weights(), resumed.weights()))
    # Its last step was validated, whatever the interval.
    extra = [row for row in rows(tmp_path / "parts") if row not in rows(tmp_path / "whole")]
    assert [(row["step"], "validation/loss" in row) for row in extra] == ([(5, True)] if first == 5 else [])
    assert [row for row in rows(tmp_path / "parts") if row not in extra] == rows(tmp_path / "whole")


def test_steps_after_the_checkpoint_are_written_once(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        Run(tmp_path, every=4, extra=[Stop(7)]).fit()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    Run(tmp_path, every=4).fit(find_checkpoint(tmp_path))
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 11))


def test_a_checkpoint_holds_plain_containers_only(tmp_path: Path) -> None:
    Run(tmp_path, validate=2).fit()
    path = find_checkpoint(tmp_path)
    assert path is not None
    assert read_state(path)["global_step"] == 10
