"""What `txtrain audit` tells is what training saw."""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from txtrain.cli import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "tests/golden/text.txt").read_text()
TINY = ["data=text", "data.path=text.txt", "tokenizer=byte", "data.seq_len=256", "data.batch_size=12", "run_dir=run"]
TINY += ["model.dim=32", "model.num_layers=1", "logger=none", "trainer.accelerator=cpu", "trainer.limit_val_batches=1"]
TINY += ["samples.length=4"]
PER_EPOCH = 12  # steps, the last of which has 9 samples


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["audit", "run", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def train(folder: Path, *overrides: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RECORD": str(folder / "seen")}
    command = [sys.executable, str(ROOT / "tests/recording.py"), *overrides]
    done = forked.run(command, cwd=folder, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_it_tells_what_training_saw(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(folder, *TINY, "trainer.max_steps=8", "data.micro_batch_size=3")
    train(folder, "resume=run", "trainer.max_steps=15", "trainer.devices=2", "strategy=ddp", "data.micro_batch_size=2")
    seen: dict[int, list[int]] = defaultdict(list)
    for file in folder.glob("seen-*"):
        for line in file.read_text().splitlines():
            step, *samples = map(int, line.split())
            seen[step] += [sample for sample in samples if sample >= 0]
    assert len(list(folder.glob("seen-*"))) == 2
    steps = told(capsys, "1..15")["steps"]
    assert [step["step"] for step in steps] == sorted(seen) == list(range(1, 16))
    for step in steps:
        number = step["step"] - 1
        assert (step["epoch"], step["position"]) == (number // PER_EPOCH, 12 * (number % PER_EPOCH))
        assert sorted(sample["index"] for sample in step["samples"]) == sorted(seen[step["step"]])
    first_epoch = [sample for step in steps[:PER_EPOCH] for sample in seen[step["step"]]]
    assert sorted(first_epoch) == list(range(141))


def test_it_shows_texts_and_whether_the_data_have_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "trainer.max_steps=1"]) == 0
    before = told(capsys, "1")
    assert (before["data"], before["data_unchanged"]) == ("unchanged since the run", True)
    for sample in before["steps"][0]["samples"]:
        start = max(0, sample["index"] * 256 - 1)  # a byte a token, but for the end of text before the first
        assert TEXT.encode()[start:].startswith(sample["text"].encode()[:20])

    (folder / "text.txt").write_text("another text. " * 5000)
    after = told(capsys, "1")
    assert after["data"].startswith("changed since the run; shown is what the run saw, from ")
    assert (after["data_unchanged"], after["steps"]) == (False, before["steps"])

    (folder / "text.txt").unlink()
    assert told(capsys, "1")["data"].startswith("cannot be read now (data.path=text.txt ")
    (folder / "cache").rename(folder / "elsewhere")
    lost = told(capsys, "1")
    assert lost["data"].endswith("is gone: no texts")
    indices = [[sample["index"] for sample in outcome["steps"][0]["samples"]] for outcome in (before, lost)]
    assert indices[0] == indices[1]
    assert lost["steps"][0]["samples"][0]["text"] is None


def test_it_prints_a_line_for_each_sample(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "trainer.max_steps=1"]) == 0
    capsys.readouterr()
    assert main(["audit", "run", "12..13"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data  unchanged since the run"
    assert lines[1] == "step 12  epoch 0, positions 132 to 140"
    assert lines[11] == "step 13  epoch 1, positions 0 to 11"
    assert len(lines) == 1 + 10 + 13
    assert all(line.startswith("  sample ") and "  from token " in line for line in lines[2:11])


@pytest.mark.parametrize(
    "words, mistake",
    [
        (["run"], "audit needs a run and a step, got 1 words"),
        (["run", "0"], "STEP is 0: give a step from 1 on"),
        (["run", "9..3"], "STEP is 9..3: "),
        (["run", "last"], "STEP is last: "),
        (["run", "3", "--jsn"], "--jsn is no flag of audit"),
        (["nowhere", "3"], "nowhere is no run directory"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {mistake}")
    assert error.count("\n") == 1
