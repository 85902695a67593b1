"""A run that is told to end goes on later as if it had not been."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from tests.callbacks.tiny import Run
from txtrain.saving import resume_point
from txtrain.signals import Interrupted, inbox

STEPS = {"max_steps": 10, "accumulation": 2, "validate": 3}


class Tell(Callback):
    """Tells the run to end while it trains a step, or while it validates after one."""

    def __init__(self, step: int, *, validating: bool) -> None:
        self.step, self.validating = step, validating

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if not self.validating and trainer.global_step == self.step - 1:
            inbox.told = signal.SIGTERM

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        if self.validating and trainer.global_step == self.step:
            inbox.told = signal.SIGTERM


def rows(run_dir: Path) -> list[dict[str, Any]]:
    measured = ("train/tokens_per_second", "train/memory_bytes", "seconds")
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in measured} for row in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("whole"), **STEPS).fit()


# Steps 3, 6 and 9 are validated; an epoch has 4.
@pytest.mark.parametrize("validating, step", [*((False, step) for step in range(1, 10)), (True, 3), (True, 6)])
def test_it_ends_at_that_step_and_goes_on_bit_for_bit(
    validating: bool, step: int, whole: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with pytest.raises(Interrupted) as end:
        Run(tmp_path, **STEPS, extra=[Tell(step, validating=validating)]).fit()
    assert end.value.code == 143
    assert f"saved at step {step}: to go on, type txtrain train resume={tmp_path}" in caplog.text
    assert "validation/loss" not in rows(tmp_path)[-1]
    outcome = json.loads((tmp_path / "summary.json").read_text())
    assert (outcome["state"], outcome["steps"]) == ("interrupted", step)

    parts = Run(tmp_path, **STEPS).fit(resume_point(tmp_path))
    assert all(map(torch.equal, parts.weights(), whole.weights()))
    assert all(map(torch.equal, parts.optimizer(), whole.optimizer()))
    assert rows(tmp_path) == rows(whole.run_dir)


def test_at_the_last_step_it_ends_as_usual(whole: Run, tmp_path: Path) -> None:
    Run(tmp_path, **STEPS, extra=[Tell(10, validating=False)]).fit()
    assert rows(tmp_path) == rows(whole.run_dir)
