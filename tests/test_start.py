"""`init_from` starts where an earlier run ended, and `dry_run` leaves nothing behind."""

import json
import os
from pathlib import Path

import pytest
import torch.nn.functional as F
import yaml

from txtrain.cli import main

TEXT = Path(__file__).parent / "golden" / "text.txt"
COMMON = ["data=text", f"data.path={TEXT}", "data.seq_len=32", "logger=none", "trainer.accelerator=cpu"]
FIRST = [
    "tokenizer=char",
    "model.dim=32",
    "model.num_layers=2",
    "encoding=learned",
    "norm=sandwich",
    "trainer.max_steps=20",
]
FIRST += ["optimizer.lr=1e-2"]
STILL = ["trainer.max_steps=1", "optimizer=sgd", "optimizer.lr=0.0"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))


def train(run_dir, *overrides):
    assert main(["train", *COMMON, f"run_dir={run_dir}", *overrides]) == 0
    return json.loads(Path(run_dir, "summary.json").read_text())


@pytest.mark.parametrize(
    "earlier", ["lora.rank=0", "lora.rank=4 lora.variant=dora", "strategy=deepspeed_zero1", "strategy=fsdp"]
)
def test_a_run_starts_from_the_weights_of_another(earlier):
    """With a learning rate of zero the loss is the earlier run's; its model and tokenizer are taken over."""
    first = train("first", *FIRST, *earlier.split())
    second = train("second", "init_from=first", *STILL)
    assert second["validation_loss"] == pytest.approx(first["validation_loss"], rel=1e-6)
    config = yaml.safe_load(Path("second/config.yaml").read_text())
    assert config["norm"]["_target_"].endswith("SandwichNorm")
    assert config["encoding"]["max_len"] == 32


def test_one_process_trains_with_deepspeed_twice():
    """DeepSpeed's own process groups, and its way to multiply that compiling does not know, end with the first run."""
    linear = F.linear
    losses = [train(name, *FIRST, "strategy=deepspeed_zero3")["validation_loss"] for name in ("first", "second")]
    assert losses[0] == losses[1]
    assert F.linear is linear


def test_only_adapters_train_on_a_trained_model():
    first = train("first", *FIRST)
    second = train("second", "init_from=first", "lora.rank=2", "trainer.max_steps=20", "optimizer.lr=1e-2")
    # Rank 2 on seven layers of two blocks: 2 · (in + out) each.
    width, inner = 32, 88
    assert second["trainable_parameters"] == 2 * 2 * (4 * 2 * width + 3 * (width + inner))
    assert second["parameters"] == first["parameters"] + second["trainable_parameters"]
    assert second["validation_loss"] < first["validation_loss"]


def test_weights_of_another_shape_are_refused(capsys):
    train("first", *FIRST)
    assert main(["train", *COMMON, "init_from=first", "dry_run=true"]) == 0
    before = sorted(Path().rglob("*"))
    assert main(["train", *COMMON, "init_from=first", "model.dim=64"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: init_from={Path('first').absolute()} has weights of another model")
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_a_dry_run_leaves_nothing(capsys):
    assert main(["train", *COMMON, "tokenizer=byte", "dry_run=true"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not [name for name in os.listdir() if name != "cache"]


def test_a_run_that_goes_on_with_other_data_says_so(capsys):
    Path("text.txt").write_text(TEXT.read_text())
    run = [*COMMON, "data.path=text.txt", *FIRST, "trainer.max_steps=2", "save.every=1"]
    assert main(["train", *run, "run_dir=run"]) == 0
    assert main(["train", "resume=run", "trainer.max_steps=3"]) == 0
    assert "not those that the run began with" not in capsys.readouterr().out
    swapped = str.maketrans("aebc", "eacb")
    Path("text.txt").write_text(TEXT.read_text().translate(swapped))
    assert main(["train", "resume=run", "trainer.max_steps=4"]) == 0
    assert "not those that the run began with" in " ".join(capsys.readouterr().out.split())
    assert "not those that the run began with" in Path("run/train.log").read_text()
    Path("text.txt").write_text(TEXT.read_text().replace("e", "é"))
    assert main(["train", "resume=run", "trainer.max_steps=5"]) == 1
    assert capsys.readouterr().err.startswith("error: resume=run: the data have changed")
