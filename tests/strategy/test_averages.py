"""Averages of weights under each strategy: two processes keep, validate and resume the same as one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.strategy.cases import STRATEGIES
from txtrain.saving import Reader

TEXT = Path(__file__).parent.parent / "golden" / "text.txt"
RUN = ["data=text", f"data.path={TEXT}", "data.seq_len=32", "data.batch_size=4", "logger=none", "tokenizer=byte"]
RUN += ["trainer.accelerator=cpu", "trainer.val_check_interval=3", "model.dim=32", "model.num_layers=2"]
RUN += ["trainer.limit_val_batches=4", "model.num_heads=4", "ema.decay=0.8", "samples.length=0"]
RUN += ["schedule=constant", "schedule.warmup=2", "optimizer.eps=1e-6"]


def train(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "txtrain", "train", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr


def outcome(run: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Validation losses, and what training made of each weight."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    reader = Reader((run / "checkpoints/last").resolve())
    names = [name.removeprefix("model/") for name in reader.names("model/")]
    assert all(f"optimizer/{name}/average" in reader for name in names)
    losses = [row["validation/loss"] for row in rows if "validation/loss" in row]
    return losses, {name: reader.learned(name) for name in names}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("one")
    train(folder, *RUN, "run_dir=run", "trainer.max_steps=6")
    return outcome(folder / "run")


@pytest.mark.heavy
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_average_as_one(
    strategy: str, one: tuple[list[float], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    train(tmp_path, *RUN, "run_dir=run", "trainer.max_steps=3", "trainer.devices=2", f"strategy={strategy}")
    train(tmp_path, "resume=run", "trainer.max_steps=6")  # what is restored is averaged further
    losses, weights = outcome(tmp_path / "run")
    assert losses == pytest.approx(one[0], abs=2e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, one[1][name], rtol=1e-4, atol=1e-5)
