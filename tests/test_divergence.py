"""A run that diverges, and one that is interrupted, still end in order."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from tests import forked
from txtrain.cli import main

ROOT = Path(__file__).parent.parent
TINY = ["data=text", f"data.path={ROOT / 'tests/golden/text.txt'}", "tokenizer=byte", "data.seq_len=32", "model.dim=32"]
TINY += ["model.num_layers=1", "logger=none", "trainer.accelerator=cpu", "trainer.limit_val_batches=1"]
TINY += ["samples.length=4"]


def test_a_diverged_run_ends_with_a_summary_and_saves_no_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wild = ["optimizer=sgd", "optimizer.lr=1e30", "trainer.gradient_clip_val=null", "trainer.max_steps=4"]
    assert main(["train", *TINY, *wild, f"data.cache_dir={tmp_path}/cache", "run_dir=run"]) == 1
    assert "the weights are not finite at step 4" in capsys.readouterr().err

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=refuse)
    assert summary["validation_loss"] is None
    assert summary["state"] == "failed"
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()


def test_ctrl_c_ends_with_130_and_a_summary(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "trainer.max_steps=100000", "run_dir=run", "save.every=5"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TXTRAIN_CACHE": str(tmp_path / "cache")}
    with (tmp_path / "output").open("w") as output, (tmp_path / "errors").open("w") as errors:
        process = forked.start(command, cwd=tmp_path, env=environment, stdout=output, stderr=errors)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "last").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["state"] == "interrupted"
