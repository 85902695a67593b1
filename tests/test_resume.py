"""Real runs, killed and resumed by the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import forked
from txtrain.saving import Reader, checkpoint_step, list_checkpoints, read_state

ROOT = Path(__file__).parent.parent
TINY = [
    "data=text",
    f"data.path={ROOT / 'tests/golden/text.txt'}",
    "tokenizer=byte",
    "model.num_layers=2",
    "model.dim=32",
    "model.num_heads=2",
    "model.dropout=0.1",
    "data.seq_len=32",
    "data.batch_size=8",
    "data.micro_batch_size=2",
    "trainer.max_steps=12",
    "trainer.val_check_interval=5",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "save.every=1",
    "logger=none",
    "samples.length=4",
]
ONE = ["trainer.devices=1"]
TWO = ["trainer.devices=2"]
WORKERS = [*ONE, "data.num_workers=2", "data.packing=documents", "save.background=true"]
STRATEGIES = ["ddp", "deepspeed_zero3"]
MORE_STRATEGIES = ["fsdp", "deepspeed_zero1", "deepspeed_zero2"]


Process = forked.Process | subprocess.Popen[bytes]


def start(folder: Path, *overrides: str, by: Callable[..., Process] = forked.start) -> Process:
    """The command in a session of its own, so that its ranks can be killed with it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    with (folder / "output.txt").open("a") as output:
        return by(command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True)


def finish(folder: Path, *overrides: str, by: Callable[..., Process] = forked.start) -> None:
    assert start(folder, *overrides, by=by).wait(timeout=240) == 0, (folder / "output.txt").read_text()


def kill_after(process: Process, checkpoints: Path, *, step: int) -> None:
    """Ends it, and all that it started, once it has saved a checkpoint of `step` or later."""
    deadline = time.monotonic() + 240
    while max((checkpoint_step(path) for path in list_checkpoints(checkpoints)), default=0) < step:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tensors(content: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All that are in nested containers, by where."""
    if isinstance(content, torch.Tensor):
        yield name, content
    elif isinstance(content, dict | list | tuple):
        for key, part in content.items() if isinstance(content, dict) else enumerate(content):
            yield from tensors(part, f"{name}/{key}")


def end_of(run_dir: Path) -> dict[str, torch.Tensor]:
    """Weights, optimizer state and generators in the last checkpoint."""
    last = (run_dir / "checkpoints/last").resolve()
    assert last.name == "step_00000012.ckpt"
    reader = Reader(last)
    return {name: reader[name] for name in reader.names()} | dict(tensors(read_state(last)))


def rows(run_dir: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    measured = ("train/tokens_per_second", "train/memory_bytes")
    return [{name: value for name, value in row.items() if name not in measured} for row in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, by",
    [
        pytest.param(ONE, subprocess.Popen, id="one"),
        pytest.param(WORKERS, forked.start, id="workers"),
        *(pytest.param([*TWO, f"strategy={name}"], forked.start, id=name) for name in STRATEGIES),
        *(
            pytest.param([*TWO, f"strategy={name}"], subprocess.Popen, id=name, marks=pytest.mark.heavy)
            for name in MORE_STRATEGIES
        ),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    tmp_path: Path, overrides: list[str], by: Callable[..., Process]
) -> None:
    if "deepspeed" in overrides[-1]:
        pytest.importorskip("deepspeed")
    settings = [*TINY, f"data.cache_dir={tmp_path / 'cache'}", *overrides]
    finish(tmp_path, "run_dir=whole", *settings, by=by)
    kill_after(start(tmp_path, "run_dir=parts", *settings, by=by), tmp_path / "parts/checkpoints", step=6)
    finish(tmp_path, "resume=parts", by=by)
    whole, parts = end_of(tmp_path / "whole"), end_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, parts[name])] == []
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert json.loads((tmp_path / "parts/summary.json").read_text())["state"] == "finished"
