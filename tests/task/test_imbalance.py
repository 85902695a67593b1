"""`data.sampling=balanced`, `save.best` and `callbacks` from the command line."""

import json
from pathlib import Path

import pytest
import torch

from tests.task.every import SIZES, TASKS, write_all
from txtrain.cli import main
from txtrain.compose import compose
from txtrain.config import check, to_plain
from txtrain.saving import Reader

RUN = [*SIZES, "logger=none", "trainer.accelerator=cpu", "optimizer=sgd", "optimizer.lr=0.1", "samples.length=0"]
RUN += ["trainer.log_every_n_steps=1", "trainer.val_check_interval=2", "data.batch_size=7", "model.dropout=0.1"]
TEXT = ["task=causal_lm", *TASKS["masked_lm"][1:]]
BALANCED = ["data.sampling=balanced", "save.best=f1", "save.every=2", "callbacks=early_stopping"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        folder = write_all(tmp_path_factory.mktemp("imbalance"))
        patch.chdir(folder)
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        yield


def words(task: str) -> list[str]:
    return [word for word in (TASKS | {"causal_lm": TEXT})[task] if not word.startswith("data.batch")]


def train(task: str, name: str, *overrides: str) -> dict[str, torch.Tensor]:
    assert main(["train", *words(task), *RUN, f"run_dir={name}", *overrides]) == 0
    return weights(name)


def weights(name: str) -> dict[str, torch.Tensor]:
    reader = Reader(Path(name, "checkpoints/last").resolve())
    return {key: reader[key] for key in reader if key.startswith("model/")}


@pytest.mark.parametrize("task", ["sequence_classification", "image_classification", "audio_classification"])
def test_micro_batches_and_resume_change_nothing(task: str) -> None:
    still = ["model.dropout=0", "head.dropout=0", "trainer.max_steps=4"]
    whole = train(task, f"{task}-whole", *BALANCED, *still)
    parts = train(task, f"{task}-parts", *BALANCED, *still, "data.micro_batch_size=2")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=2e-6)
    if task == "sequence_classification":
        plain = train(task, f"{task}-plain", *still)
        assert any(not torch.equal(plain[name], whole[name]) for name in whole)


def test_resume_is_bitwise() -> None:
    options = [*BALANCED, "schedule=constant", "schedule.warmup=0"]
    whole = train("sequence_classification", "whole", *options, "trainer.max_steps=6")
    train("sequence_classification", "parts", *options, "trainer.max_steps=4")
    assert main(["train", "resume=parts", "trainer.max_steps=6"]) == 0
    parts = weights("parts")
    assert [name for name in whole if not torch.equal(parts[name], whole[name])] == []
    best = [json.loads(Path(run, "summary.json").read_text())["best"] for run in ("whole", "parts")]
    assert best[0] == best[1] and best[0]["metric"] == "f1"
    assert Path("parts/checkpoints/best").resolve().name == f"step_{best[0]['step']:08d}.ckpt"


@pytest.mark.parametrize(
    "typed, names",
    [
        ("callbacks=none", set()),
        ("callbacks=early_stopping", {"early_stopping"}),
        ("callbacks=[early_stopping,learning_rate_monitor]", {"early_stopping", "learning_rate_monitor"}),
    ],
)
def test_the_group_takes_one_or_a_list(typed: str, names: set[str]) -> None:
    config = to_plain(compose([typed]).config)
    check(config)
    assert set(config["callbacks"]) == names


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["save.best=accuracy"], "save.best=accuracy is no metric of this run's validation, which has loss"),
        (["callbacks=early_stopping", "callbacks.early_stopping.monitor=f2"], "early_stopping.monitor=f2 is no metric"),
        (["callbacks=early_stopping", "callbacks.early_stopping.patience=0"], "patience is 0"),
        (["callbacks=early_stopping", "+callbacks.x=3"], "callbacks.x is no callback: leave it out"),
        (["callbacks=EarlyStopping"], "did you mean callbacks=early_stopping?"),
        (["callbacks=learning_rate_monitor"], "logger=tensorboard"),
        (["+data.sampling=balanced"], "data.sampling=balanced draws each label equally often"),
    ],
)
def test_mistakes_are_a_line(overrides: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", *words("causal_lm"), *RUN, *overrides, "run_dir=mistake"]) == 1
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1 and not Path("mistake").exists()


def test_learning_rates_go_to_the_logger() -> None:
    monitor = ["callbacks=learning_rate_monitor", "logger=tensorboard", "trainer.max_steps=2"]
    train("sequence_classification", "monitored", *monitor)
    events = next(Path("monitored/tensorboard").rglob("events*")).read_bytes()
    assert b"lr-SGD" in events
