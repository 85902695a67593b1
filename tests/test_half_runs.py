"""Runs in bfloat16: resumed bit for bit, alike on all devices and in shards, and across precisions and strategies."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.strategy.cases import train
from tests.test_resume import ONE, TINY, TWO, finish, rows
from txtrain.cli import main
from txtrain.saving import MOMENT, WEIGHT, Reader

HALF = [*TINY, *ONE, "trainer.precision=bf16-true", "schedule=constant", "save.every=6", "data.cache_dir=cache"]
HALF += ["model.dim=64", "model.num_layers=1", "trainer.max_steps=6", "samples.length=0", "schedule.warmup=0"]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txtrain.optim.half.SMALL", 1024)  # so that matrices of a tiny model are rounded at random
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """The same batches in one process, and in each of two; and different ones in each of two."""
    half = {"arguments": {"lr": 0.01}, "precision": "bf16-true"}
    cases = {
        (strategy, optimizer): half | {"optimizer": optimizer, "alike": strategy != "auto"}
        for strategy in ("auto", "ddp", "fsdp")
        for optimizer in ("adamw", "Muon")
    }
    cases["ddp", "other batches"] = half | {"optimizer": "adamw"}
    script = Path(__file__).parent / "strategy/half.py"
    return train(tmp_path_factory.mktemp("half"), cases, script=script)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "Muon"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_replicas_and_shards_get_the_bits_of_their_elements(
    results: dict[Any, Any], strategy: str, optimizer: str
) -> None:
    one, two = results["auto", optimizer], results[strategy, optimizer]
    assert one["losses"][-1] < 0.95 * one["losses"][0]
    assert [name for name, weight in one["weights"].items() if not torch.equal(two["weights"][name], weight)] == []


@pytest.mark.slow
def test_replicas_stay_equal_on_different_batches(results: dict[Any, Any]) -> None:
    assert results["ddp", "other batches"]["replicas_equal"]


def run(*overrides: str) -> None:
    assert main(["train", *overrides]) == 0


def tensors(run_dir: str) -> dict[str, torch.Tensor]:
    return dict(Reader(Path(run_dir, "checkpoints/last")))


@pytest.mark.parametrize(
    "options, masters",
    [
        ("optimizer=adamw", "3 small weights (1 KiB)"),
        ("optimizer=muon", "3 small weights (1 KiB)"),
        ("lora.rank=2 lora.variant=dora", "24 small weights"),
    ],
)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(options: str, masters: str) -> None:
    settings = [*HALF, *options.split()]
    run(*settings, "run_dir=whole", "trainer.max_steps=12")
    run(*settings, "run_dir=parts")
    run("resume=parts", "trainer.max_steps=12")
    whole, parts = tensors("whole"), tensors("parts")
    assert whole.keys() == parts.keys()
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, parts[name])] == []
    for name, tensor in whole.items():
        large = name.startswith(WEIGHT) and tensor.ndim == 2 and tensor.numel() >= 1024
        assert tensor.dtype == (torch.bfloat16 if large else torch.float32), name
    told = Path("whole/train.log").read_text()
    assert re.search(
        f"bfloat16 weights rounded at random, moments in float32, float32 masters of .*{re.escape(masters)}", told
    )
    assert "earlier version" not in Path("parts/train.log").read_text()


def test_masters_go_on_in_float32_and_are_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """From step 6 on nothing moves, so a checkpoint has the weights of the one before."""
    monkeypatch.setattr("txtrain.schedule.Constant.curve", lambda schedule, step, *rest: float(step < 6))
    run(*HALF, "run_dir=run")
    half = tensors("run")
    norms = [name for name in half if name.startswith(WEIGHT) and half[name].ndim == 1]
    assert len(norms) == 3
    assert all(torch.any(half[name] != half[name].bfloat16()) for name in norms)
    run("resume=run", "trainer.max_steps=7", "trainer.precision=32")
    full = tensors("run")
    run("resume=run", "trainer.max_steps=8", "trainer.precision=bf16-true")
    again = tensors("run")
    assert again.keys() == full.keys() == half.keys()
    for name in (name for name in half if name.startswith(WEIGHT)):
        assert full[name].dtype == torch.float32
        assert torch.equal(full[name], half[name].float())
        assert torch.equal(again[name], half[name])
    assert "earlier version" not in Path("run/train.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("after", ["fsdp", pytest.param("deepspeed_zero2", marks=pytest.mark.heavy)])
def test_masters_go_on_under_another_strategy(tmp_path: Path, after: str) -> None:
    if after != "fsdp":
        pytest.importorskip("deepspeed")
    settings = [*HALF, "model.dropout=0"]
    finish(tmp_path, *settings, "run_dir=whole", "trainer.max_steps=8")
    finish(tmp_path, *settings, "run_dir=run")
    finish(tmp_path, "resume=run", "trainer.max_steps=7", *TWO, f"strategy={after}")
    finish(tmp_path, "resume=run", "trainer.max_steps=8", *ONE, "strategy=auto")
    assert tensors("run").keys() == tensors("whole").keys()
    losses, wanted = (
        [row["train/loss"] for row in rows(tmp_path / name) if "train/loss" in row] for name in ("run", "whole")
    )
    assert losses[:6] == wanted[:6]
    assert losses == pytest.approx(wanted, rel=2e-3)
    assert "earlier version" not in Path("run/train.log").read_text()


def test_an_older_checkpoint_is_read_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    run(*HALF, "run_dir=run")
    read = Reader.__getitem__
    with monkeypatch.context() as older:
        older.setattr(Reader, "__getitem__", lambda reader, name: read(reader, name).bfloat16())
        older.setattr(Reader, "has_16_bits", lambda reader, name: name.startswith(MOMENT))
        run("resume=run", "trainer.max_steps=7")
    assert Path("run/train.log").read_text().count("moments go on in float32") == 1
    assert all(value.dtype == torch.float32 for name, value in tensors("run").items() if name.startswith(MOMENT))
