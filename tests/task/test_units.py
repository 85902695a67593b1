"""What rows count: all that the model reads but padding, by its name, and again for runs from before."""

import json
from pathlib import Path

import numpy as np
import pytest

import txtrain.task.base
from tests.task.every import TASKS, build, write_all
from txtrain.cli import main
from txtrain.data.loader import StepLoader

UNITS = {"image_classification": "images", "audio_classification": "frames", "speech_recognition": "frames"}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        folder = write_all(tmp_path_factory.mktemp("units"))
        patch.chdir(folder)
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        yield


def read_in(batch) -> int:
    """Counted from the tensors that the model gets."""
    real = batch["index"] >= 0
    if "frames" in batch:
        return int(batch["lengths"][real].sum())
    if "images" in batch:
        return int(real.sum())
    if "source" in batch:
        return int(batch["source_padding"][real].sum() + (batch["targets"] >= 0).sum())
    return int(batch["padding"].sum()) if "padding" in batch else batch["tokens"].numel()


@pytest.mark.parametrize("name", TASKS)
def test_a_step_counts_what_the_model_reads(name: str) -> None:
    data, task = build(name)
    assert task.unit == UNITS.get(name, "tokens")
    samples = data.samples("train")
    order = data.order(samples, seed=data.seed)
    loader = StepLoader(samples, order=order, micro=None, accumulation=1)
    counts = []
    for _, batch in zip(range(3), loader, strict=False):
        assert int(batch["step_read"]) == read_in(batch) > 0
        assert "num_tokens" not in batch
        counts.append(int(batch["step_read"]))
    assert data.units_read(len(counts)) == sum(counts)
    assert data.units_read(order.steps + 1) > data.units_read(order.steps)


@pytest.mark.parametrize("name", ["masked_lm", "audio_classification", "translation"])
def test_a_run_that_counted_targets_goes_on_from_what_it_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run, unit = tmp_path / "run", UNITS.get(name, "tokens")
    command = [*TASKS[name], "model.dim=24", "model.num_layers=1", "model.num_heads=2", "logger=none"]
    command += ["trainer.accelerator=cpu", f"run_dir={run}", "trainer.log_every_n_steps=1", "samples.length=0"]
    with monkeypatch.context() as before:
        before.setattr(txtrain.task.base, "RULES", ())
        assert main(["train", *command, "trainer.max_steps=2"]) == 0
    state = [row for row in rows(run) if f"train/{unit}" in row]
    told = state[-1][f"train/{unit}"]
    assert main(["train", f"resume={run}", "trainer.max_steps=4"]) == 0
    assert f"it goes on from {told}," in capsys.readouterr().out
    counts = [row[f"train/{unit}"] for row in rows(run) if f"train/{unit}" in row]
    assert np.all(np.diff(counts) > 0) and len(counts) == 4
    summary = json.loads((run / "summary.json").read_text())
    assert summary[unit] == counts[-1] and summary[f"{unit}_per_second"] > 0
    assert all({"epoch", "seconds"} <= row.keys() for row in rows(run))
    assert [row["seconds"] for row in rows(run)] == sorted(row["seconds"] for row in rows(run))


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
