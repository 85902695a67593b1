"""Fine-tuning is validated before its first step; training is the same as without, and the end shows both."""

import json
import math
from pathlib import Path

import pytest

from tests.callbacks.test_stopping import Tell
from tests.callbacks.tiny import Run
from txtrain.callbacks.first_validation import FirstValidation
from txtrain.callbacks.summary import side_by_side
from txtrain.cli import main
from txtrain.signals import Interrupted

TEXT = Path(__file__).parent.parent / "golden" / "text.txt"
RUN = ["data=text", f"data.path={TEXT}", "data.seq_len=32", "logger=none", "trainer.accelerator=cpu"]
RUN += ["model.dropout=0.3", "tokenizer=char", "model.dim=32", "model.num_layers=1"]
RUN += ["trainer.limit_val_batches=3", "trainer.log_every_n_steps=1", "trainer.max_steps=4", "samples.length=4"]
TUNE = [*RUN[:6], *RUN[9:], "init_from=base"]


def rows(run: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def summary(run: str) -> dict[str, float]:
    return json.loads(Path(run, "summary.json").read_text())


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(here, capsys):
    assert main(["train", *RUN, "run_dir=base"]) == 0
    assert not [row for row in rows("base") if row["step"] == 0], "from scratch there is nothing to compare with"
    capsys.readouterr()
    return summary("base")["validation_loss"]


def test_fine_tuning_is_validated_before_its_first_step(base, capsys):
    assert main(["train", *TUNE, "lora.rank=4", "samples.before=true", "run_dir=tuned"]) == 0
    told = capsys.readouterr().out
    first = rows("tuned")[0]
    assert first["step"] == 0
    assert first["validation/loss"] == pytest.approx(base, rel=1e-6)
    assert summary("tuned")["before"]["loss"] == first["validation/loss"]
    assert f"{summary('tuned')['validation_loss']:.4f}  (before {first['validation/loss']:.4f})" in told
    assert "validation at step 0" in told and told.count("sample at step 0  ") == 1
    assert not [path for path in Path("tuned/checkpoints").iterdir() if path.name.endswith("00000.ckpt")]
    # And it leaves no trace in training, dropout and all.
    assert main(["train", *TUNE, "lora.rank=4", "trainer.limit_val_batches=0", "run_dir=without"]) == 0
    losses = [[row["train/loss"] for row in rows(run) if "train/loss" in row] for run in ("tuned", "without")]
    assert losses[0] == losses[1]
    # A run that goes on does not validate again, and still knows.
    before = summary("tuned")["before"]
    assert main(["train", "resume=tuned", "trainer.max_steps=6"]) == 0
    assert summary("tuned")["before"] == before
    assert len([row for row in rows("tuned") if row["step"] == 0]) == 1


def test_a_classifier_with_a_new_head_is_validated_before_its_first_step(here, capsys):
    """It knows nothing yet, and that it was measured changes neither its head nor its training."""
    shape = ["model.dropout=0.3", "tokenizer=byte", "model.dim=32", "model.num_layers=1"]
    assert main(["train", "task=masked_lm", *RUN[:5], *shape, "trainer.max_steps=2", "run_dir=base"]) == 0
    lines = [f"{('awful', 'fine')[number % 2]} weather {number},{'ab'[number % 2]}\n" for number in range(40)]
    Path("rows.csv").write_text("text,label\n" + "".join(lines))
    tune = ["task=sequence_classification", "data=labelled", "data.path=rows.csv", "data.validation_fraction=0.3"]
    tune += [*RUN[3:5], "trainer.log_every_n_steps=1", "trainer.max_steps=4", "init_from=base", "optimizer.lr=0.03"]
    assert main(["train", *tune, "run_dir=tuned"]) == 0
    told = capsys.readouterr().out
    first, before, after = rows("tuned")[0], summary("tuned")["before"], summary("tuned")["validation_loss"]
    assert first["step"] == 0 and first["validation/accuracy"] == before["accuracy"]
    assert before["loss"] == first["validation/loss"] == pytest.approx(math.log(2), abs=0.2)
    assert f"{after:.4f}  (before {before['loss']:.4f})" in told
    assert main(["train", *tune, "trainer.limit_val_batches=0", "run_dir=without"]) == 0
    losses = [[row["train/loss"] for row in rows(run) if "train/loss" in row] for run in ("tuned", "without")]
    assert len(losses[0]) == 4 and losses[0] == losses[1]


def test_averages_are_validated_once_there_are_some(base):
    assert main(["train", *TUNE, "ema.decay=0.9", "run_dir=tuned"]) == 0
    assert rows("tuned")[0]["validation/loss"] == pytest.approx(base, rel=1e-6)
    assert summary("tuned")["validation_loss"] != rows("tuned")[0]["validation/loss"]


def test_told_to_end_before_the_first_step_it_saves_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    with pytest.raises(Interrupted):
        Run(tmp_path, validate=3, extra=[Tell(0, validating=True), FirstValidation(wanted=True)]).fit()
    assert f"before the first step: to go on, type txtrain train resume={tmp_path}" in caplog.text
    assert not (tmp_path / "checkpoints").exists()


def test_two_texts_stand_side_by_side():
    told = side_by_side("The capital of France is Paris, which everybody knows.", "It is\nParis.").splitlines()
    assert [line.split(" | ")[0].rstrip() for line in told] == [
        "The capital of France is Paris,",
        "which everybody knows.",
    ]
    assert [line.split(" | ")[1] for line in told] == ["after  It is", "       Paris."]
