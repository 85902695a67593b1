"""Two devices from the command line: every strategy ends with the loss of one process, in one run directory."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests import forked

ROOT = Path(__file__).parent.parent
# A learned bias, whose weights are read outside any module's forward, is what sharding breaks most easily.
JOB = ["data=text", f"data.path={ROOT / 'tests/golden/text.txt'}", "tokenizer=byte", "data.seq_len=32", "model.dim=32"]
JOB += ["model.num_layers=2", "encoding=fire", "optimizer=sgd", "lora.rank=2", "data.batch_size=7", "logger=none"]
JOB += ["trainer.accelerator=cpu", "trainer.max_steps=6", "samples.length=4"]
SHARDED = "strategy.zero_optimization.stage3_param_persistence_threshold=0"
STRATEGIES = ["ddp", f"deepspeed_zero3 {SHARDED}"]
MORE_STRATEGIES = ["fsdp", "deepspeed_zero1", "deepspeed_zero2"]


def train(folder: Path, *overrides: str) -> dict[str, object]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TXTRAIN_CACHE": str(folder / "cache")}
    command = [sys.executable, str(ROOT / "train.py"), *JOB, *overrides]
    done = forked.run(command, cwd=folder, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = folder.glob("runs/gpt/*")
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "train.log", "metrics.jsonl", "checkpoints"}
    assert (run / "train.log").read_text().count("validation at step 6") == 1
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize(
    "strategy", [*STRATEGIES, *(pytest.param(name, marks=pytest.mark.heavy) for name in MORE_STRATEGIES)]
)
def test_two_devices_end_where_one_does(strategy, one, tmp_path):
    two = train(tmp_path, "trainer.devices=2", *f"strategy={strategy}".split())
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-5)
    assert two["tokens"] == one["tokens"]
    assert two["parameters"] == one["parameters"]
    assert two["trainable_parameters"] == one["trainable_parameters"]
