"""Early stopping and the best checkpoint, by any metric of validation, bit for bit on resume."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from tests.callbacks.test_resume import Stop, rows
from tests.callbacks.tiny import Run
from txtrain.callbacks.early_stopping import EarlyStopping
from txtrain.callbacks.first_validation import FirstValidation
from txtrain.errors import UserError
from txtrain.measures import HIGHER, LOWER, find_measure
from txtrain.saving import find_checkpoint
from txtrain.task.audio_classification import AudioClassification
from txtrain.task.causal_lm import CausalLM
from txtrain.task.image_classification import ImageClassification
from txtrain.task.masked_lm import MaskedLM, MaskedPairs
from txtrain.task.sequence_classification import SequenceClassification
from txtrain.task.speech_recognition import SpeechRecognition
from txtrain.task.token_classification import TokenClassification
from txtrain.task.translation import Translation

TASKS = [AudioClassification, CausalLM, ImageClassification, MaskedLM, MaskedPairs, SequenceClassification]
TASKS += [SpeechRecognition, TokenClassification, Translation]


class Script(Callback):
    """Says what validations find: losses in this order, at steps 1, 2, ..."""

    def __init__(self, *losses: float) -> None:
        self.losses = losses

    def on_validation_epoch_start(self, trainer: Any, task: Any) -> None:
        loss = self.losses[trainer.global_step - 1]

        def scripted() -> None:
            task.validation = {"validation/loss": loss, "validation/accuracy": 1 / (1 + abs(loss - 3))}
            found = {name: torch.tensor(value) for name, value in task.validation.items()}
            trainer.callback_metrics.update(found)

        task.on_validation_epoch_end = scripted


def stopping(**options: Any) -> EarlyStopping:
    return EarlyStopping(**{"patience": 2, **options})


def test_a_run_stops_early_with_a_checkpoint_and_says_why(tmp_path: Path) -> None:
    losses = Script(3.0, 2.0, 2.5, 2.4, 1.0, 1.0)
    run = Run(tmp_path, validate=1, others=[stopping()], extra=[losses]).fit()
    assert run.trainer.global_step == 4
    assert find_checkpoint(tmp_path).name == "step_00000004.ckpt"
    outcome = run.summary.finish(run.trainer, run.task)
    assert outcome["state"] == "finished"
    assert outcome["stopped"].startswith("callbacks=early_stopping: Monitored metric validation/loss did not improve")
    assert outcome["best"] == {"metric": "loss", "value": 2.0, "step": 2}


@pytest.mark.parametrize("options", [{}, {"stopping_threshold": 2.0}, {"divergence_threshold": 5.0}])
@pytest.mark.parametrize("before", [1.0, 9.0, math.nan])
def test_the_validation_before_fine_tuning_does_not_count(tmp_path: Path, before: float, options: Any) -> None:
    """Whatever it finds, the run ends where it would without it."""
    losses = Script(3.0, 2.5, 2.6, 2.7, 2.4, before)  # the last at step 0
    extra = [losses, FirstValidation(wanted=True)]
    run = Run(tmp_path, max_steps=5, validate=1, others=[stopping(**options)], extra=extra).fit()
    assert run.trainer.global_step == 4


@pytest.mark.parametrize("monitor, last", [("loss", 6), ("accuracy", 3), ("val/accuracy", 3)])
def test_each_metric_in_its_direction(tmp_path: Path, monitor: str, last: int) -> None:
    losses = Script(3.0, 2.9, 2.8, 2.7, 2.75, 2.76)  # accuracy is best at a loss of 3
    run = Run(tmp_path, max_steps=6, validate=1, others=[stopping(monitor=monitor)], extra=[losses]).fit()
    assert run.trainer.global_step == last


@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_a_resumed_run_stops_where_the_other_does(tmp_path: Path, stopped: int) -> None:
    losses = (3.0, 2.0, 2.5, 2.4, 1.0, 1.0)
    settings: dict[str, Any] = {"validate": 1, "every": 1}
    whole = Run(tmp_path / "whole", others=[stopping()], extra=[Script(*losses)], **settings).fit()
    with pytest.raises(RuntimeError, match="killed"):
        Run(tmp_path / "parts", others=[stopping()], extra=[Script(*losses), Stop(stopped)], **settings).fit()
    parts = Run(tmp_path / "parts", others=[stopping()], extra=[Script(*losses)], **settings)
    parts.fit(find_checkpoint(tmp_path / "parts"))
    assert parts.trainer.global_step == whole.trainer.global_step == 4
    assert all(map(torch.equal, whole.weights(), parts.weights()))
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    later = Run(tmp_path / "parts", others=[stopping(patience=3)], extra=[Script(*losses)], max_steps=6, **settings)
    later.fit(find_checkpoint(tmp_path / "parts"))
    assert later.trainer.global_step == 6, "a longer patience counts on resume"


@pytest.mark.parametrize("best, step", [("loss", 4), ("validation/loss", 4), ("accuracy", 1), ("val/accuracy", 1)])
def test_the_best_checkpoint_is_that_of_its_metric(tmp_path: Path, best: str, step: int) -> None:
    losses = Script(3.0, 2.9, 2.8, 2.7, 2.75, 2.76)
    run = Run(tmp_path, max_steps=6, validate=1, every=1, best=best, extra=[losses]).fit()
    assert (tmp_path / "checkpoints/best").resolve().name == f"step_{step:08d}.ckpt"
    found = run.summary.outcome(run.trainer, run.task)["best"]
    assert (found["metric"], found["step"]) == (best.rpartition("/")[2], step)
    assert found["value"] == (1.0 if "accuracy" in best else 2.7)


def test_the_best_goes_on_after_a_resume_and_begins_anew_for_another_metric(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    losses = Script(3.0, 2.9, 2.8, 2.95, 2.99, 3.5)
    Run(tmp_path, max_steps=3, validate=1, every=1, best="accuracy", extra=[losses]).fit()
    checkpoint = find_checkpoint(tmp_path)
    run = Run(tmp_path, max_steps=5, validate=1, every=1, best="accuracy", extra=[losses]).fit(checkpoint)
    assert (tmp_path / "checkpoints/best").resolve().name == "step_00000001.ckpt"
    assert run.checkpoints.best_step == 1 and "begins anew" not in caplog.text
    checkpoint = find_checkpoint(tmp_path)
    run = Run(tmp_path, max_steps=6, validate=1, every=1, extra=[losses]).fit(checkpoint)
    assert run.checkpoints.best_step == 6
    assert (
        "The best checkpoint was that of validation/accuracy: that of validation/loss begins anew." in caplog.messages
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_direction_of_every_metric_is_known(task: Any) -> None:
    for labels in (["a", "b"], ["O", "B-X", "I-X"], list("abcdefgh")):
        measured = task.measured(type("Data", (), {"labels": labels}))
        assert measured[0] == "loss" and set(measured) <= {*LOWER, *HIGHER}
        for name in measured:
            assert find_measure("save.best", name, measured) == (
                f"validation/{name}",
                "min" if name in LOWER else "max",
            )


def test_mistakes_are_a_line() -> None:
    with pytest.raises(UserError, match=r"^save.best=bleuu is no metric .*: type save.best=bleu$"):
        find_measure("save.best", "bleuu", ["loss", "bleu"])
    with pytest.raises(UserError, match=r"^save.best=train/loss is no metric"):
        find_measure("save.best", "train/loss", ["loss", "bleu"])
    with pytest.raises(UserError, match=r": type save.best_mode=max or save.best_mode=min$"):
        find_measure("save.best", "mine", ["loss", "mine"])
    assert find_measure("save.best", "mine", ["loss", "mine"], "max") == ("validation/mine", "max")
    assert find_measure("save.best", "german/bleu", ["loss", "german/bleu"]) == ("validation/german/bleu", "max")
    with pytest.raises(ValueError, match="give 1 or more"):
        EarlyStopping(patience=0)
