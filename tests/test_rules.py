"""Runs from before a rule of training changed, when they resume."""

import json
from pathlib import Path

import pytest

import txtrain.task.base
from txtrain.cli import main

SMALL = ["data=text", "tokenizer=char", "model.dim=16", "model.num_layers=2", "model.num_heads=2", "data.seq_len=16"]
SMALL += ["data.batch_size=4", "logger=none", "trainer.accelerator=cpu", "samples.length=0", "trainer.max_steps=2"]
SMALL += ["trainer.limit_val_batches=1"]


@pytest.mark.parametrize(
    "overrides, warned",
    [
        (["norm=sandwich", "model.dropout=0.1"], True),
        (["norm=reordered", "model.drop_path=0.1"], True),
        (["norm=sandwich"], False),
        (["norm=pre", "model.dropout=0.1"], False),
    ],
)
def test_a_run_that_dropped_inside_the_outer_norm_is_told_once(
    overrides: list[str], warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("a quick brown fox jumps over the lazy dog\n" * 40)
    with monkeypatch.context() as before:
        before.setattr(txtrain.task.base, "RULES", ())
        assert main(["train", *SMALL, f"data.path={text}", f"run_dir={run}", *overrides]) == 0

    told = []
    for steps in (4, 6):
        capsys.readouterr()
        assert main(["train", f"resume={run}", f"trainer.max_steps={steps}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        told.append([line for line in lines if "after its outer norm" in line and "This run began" in line])
    assert [len(lines) for lines in told] == [int(warned), 0]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()][-1] == 6
