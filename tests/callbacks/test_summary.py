"""What a run tells of itself."""

import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import nn

from tests.callbacks.tiny import Run
from txtrain.callbacks.description import compute_dtype
from txtrain.callbacks.summary import logger_name, optimizer_name
from txtrain.logger import chosen
from txtrain.model.lora import parameter_counts
from txtrain.saving import find_checkpoint


def finish(run: Run) -> dict[str, Any]:
    run.summary.finish(run.trainer, run.task)
    return json.loads((run.run_dir / "summary.json").read_text())


def test_the_end_says_what_came_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = Run(tmp_path, max_steps=4, validate=2).fit()
    outcome = finish(run)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert outcome["validation_loss"] == rows[-1]["validation/loss"]
    assert outcome["train_loss"] == next(row["train/loss"] for row in rows[::-1] if "train/loss" in row)
    assert outcome["parameters"] == outcome["trainable_parameters"] == 11 * 16 + 16 * 11 + 11
    assert (outcome["steps"], outcome["tokens"]) == (4, 176)
    assert (outcome["state"], outcome["stopped"]) == ("finished", "trainer.max_steps=4 reached")
    assert outcome["sample"] == run.summary.samples.text
    assert outcome["peak_memory_bytes"] > 2**20
    assert 0 < outcome["wall_seconds"] < 600
    told = "\n".join(caplog.messages)
    assert f"{outcome['validation_loss']:.4f}" in told
    assert f"txtrain train resume={tmp_path}" in told
    assert str(tmp_path / "checkpoints/best") in told


def test_the_start_says_what_will_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Run(tmp_path, max_steps=8, accumulation=2).fit()
    told = {line.split("  ")[0]: line for line in caplog.messages}
    assert "6 sequences of 8 a step: micro-batches of 3 × 1 device × accumulation 2" in told["batch"]
    assert "8 (2.00 epochs)" in told["steps"]
    assert "363 parameters, all trainable" in told["model"]
    assert told["optimizer"].endswith("  AdamW")
    assert str(tmp_path) in told["run directory"]


class Slow(Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(0.4)


@pytest.mark.parametrize(
    "limit, steps, reason",
    [
        ({"max_epochs": 2}, 8, "trainer.max_epochs=2 reached"),
        ({"max_time": "0.3s", "max_epochs": 2}, 1, "trainer.max_time=0.3s reached"),
    ],
)
def test_other_limits_are_named_and_end_with_a_checkpoint(
    tmp_path: Path, limit: dict[str, Any], steps: int, reason: str
) -> None:
    # Time runs out in the first of two micro-batches: the step is done to its end.
    slow = [Slow()] if "max_time" in limit else []
    outcome = finish(Run(tmp_path, max_steps=-1, accumulation=2, validate=3, extra=slow, **limit).fit())
    assert (outcome["steps"], outcome["stopped"]) == (steps, reason)
    assert outcome["validation_loss"] is not None
    assert find_checkpoint(tmp_path).name == f"step_{steps:08d}.ckpt"


class Fail(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            raise self.error


def test_a_failure_is_written_down(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path, extra=[Fail(ZeroDivisionError("a step of\nnothing"))]).fit()
    outcome = json.loads((tmp_path / "summary.json").read_text())
    assert (outcome["state"], outcome["stopped"]) == ("failed", "ZeroDivisionError: a step of")
    assert outcome["steps"] == 2


def test_an_interruption_is_written_down(tmp_path: Path) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        Run(tmp_path, extra=[Fail(KeyboardInterrupt())]).fit()
    assert json.loads((tmp_path / "summary.json").read_text())["state"] == "interrupted"


def test_a_resumed_run_has_the_whole_time_and_the_outcome_of_what_was_done(tmp_path: Path) -> None:
    first = finish(Run(tmp_path, max_steps=3, validate=3).fit())
    run = Run(tmp_path, max_steps=3, validate=3).fit(find_checkpoint(tmp_path))
    again = finish(run)
    for name in ("validation_loss", "train_loss", "steps", "tokens", "sample"):
        assert again[name] == first[name]
    assert again["wall_seconds"] > run.summary.metrics.clock.seconds_before > 0


def test_parameters_are_counted_once_and_sharded_ones_whole() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 1))
    module[1].weight = module[0].weight
    module[2].bias.requires_grad_(False)
    assert parameter_counts(module) == (21, 20)
    module[0].weight.data, module[0].weight.ds_numel = torch.empty(0), 16
    assert parameter_counts(module) == (21, 20)


def test_the_optimizer_that_runs_is_named() -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    fused = torch.optim.AdamW(weights, fused=True)
    assert optimizer_name(fused) == "AdamW, fused"
    assert optimizer_name(SimpleNamespace(optimizer=fused)) == "AdamW, fused"  # as DeepSpeed wraps it
    assert optimizer_name(torch.optim.SGD(weights, lr=1.0)) == "SGD"


@pytest.mark.parametrize(
    "precision, dtype",
    [
        ("32-true", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("bf16-true", torch.bfloat16),
        ("16-mixed", torch.float16),
    ],
)
def test_compute_dtype(precision: str, dtype: torch.dtype) -> None:
    assert compute_dtype(precision) == dtype


def test_loggers_are_named_as_they_are_typed(tmp_path: Path) -> None:
    both = chosen(run_dir=tmp_path, name="gpt", config={}, tensorboard=True, csv=True)
    assert [logger_name(logger) for logger in both] == ["tensorboard", "csv"]
