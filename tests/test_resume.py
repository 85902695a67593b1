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
from txtrain.callbacks.stopping import Stopping
from txtrain.cli import main
from txtrain.config import saved_config
from txtrain.run import RunDirectory
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


def end_of(run_dir: Path, *, step: int = 12) -> dict[str, torch.Tensor]:
    """Weights, optimizer state and generators in the last checkpoint."""
    last = (run_dir / "checkpoints/last").resolve()
    assert checkpoint_step(last) == step
    reader = Reader(last)
    return {name: reader[name] for name in reader.names()} | dict(tensors(read_state(last)))


def rows(run_dir: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    measured = ("train/tokens_per_second", "train/memory_bytes", "seconds")
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


MEASURED = (
    *("tokens_per_second", "peak_memory_bytes", "wall_seconds"),
    *("preparation_peak_memory_bytes", "preparation_seconds"),
)


def outcome(run_dir: Path) -> dict[str, Any]:
    found = json.loads((run_dir / "summary.json").read_text())
    return {name: found[name] if name not in MEASURED else found[name] > 0 for name in found}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([*ONE, "logger=tensorboard"], id="steps"),
        pytest.param([*ONE, "trainer.max_steps=-1", "trainer.max_epochs=1", "schedule=constant"], id="epochs"),
        pytest.param([*TWO, "strategy=ddp", "trainer.limit_val_batches=0"], id="ddp"),
    ],
)
def test_a_run_killed_after_its_last_checkpoint_tells_its_outcome_when_it_goes_on(
    tmp_path: Path, overrides: list[str]
) -> None:
    wide = ["data.seq_len=128", "data.batch_size=20", "data.micro_batch_size=10"]
    settings = [*TINY, *wide, f"data.cache_dir={tmp_path / 'cache'}", *overrides]
    finish(tmp_path, "run_dir=whole", *settings)
    last = checkpoint_step((tmp_path / "whole/checkpoints/last").resolve())
    parts = tmp_path / "parts"
    parts.mkdir()
    os.mkfifo(parts / "summary.json.partial")  # nobody reads it, so the process waits where it writes its summary
    kill_after(start(tmp_path, "run_dir=parts", *settings), parts / "checkpoints", step=last)
    (parts / "summary.json.partial").unlink()
    assert not (parts / "summary.json").exists()
    finish(tmp_path, "resume=parts")
    assert outcome(parts) == outcome(tmp_path / "whole")
    assert rows(parts) == rows(tmp_path / "whole")
    whole, ended = (end_of(path, step=last) for path in (tmp_path / "whole", parts))
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, ended[name])] == []
    assert start(tmp_path, "resume=parts").wait(timeout=240) == 1
    assert f"parts is finished at step {last}" in (tmp_path / "output.txt").read_text()


@pytest.fixture
def told_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has this process get SIGTERM at the end of a step."""
    steps = set[int]()
    on_train_batch_end = Stopping.on_train_batch_end

    def tell(self: Stopping, trainer: Any, *rest: Any) -> None:
        if trainer.global_step in steps:
            steps.clear()
            os.kill(os.getpid(), signal.SIGTERM)
        on_train_batch_end(self, trainer, *rest)

    monkeypatch.setattr(Stopping, "on_train_batch_end", tell)
    return steps.add


def test_a_longer_run_that_is_interrupted_goes_on_to_its_new_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], told_at: Callable[[int], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [*TINY, *ONE, f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_steps=2", "samples.length=0"]

    def go_on(*overrides: str) -> list[str]:
        """Trains, and returns the overrides of the line that is printed at the end."""
        assert main(["train", *overrides]) == 0
        return capsys.readouterr().out.split("train resume=")[-1].split()

    assert go_on("run_dir=runs/gpt/whole", *settings) == ["runs/gpt/whole", "trainer.max_steps=4"]
    assert go_on("resume=runs/gpt/whole", "trainer.max_steps=4") == ["runs/gpt/whole", "trainer.max_steps=8"]
    assert go_on("run_dir=runs/gpt/parts", *settings) == ["runs/gpt/parts", "trainer.max_steps=4"]
    told_at(3)
    assert main(["train", "resume=runs/gpt/parts", "trainer.max_steps=4"]) == 128 + signal.SIGTERM
    assert saved_config(Path("runs/gpt/parts")).trainer.max_steps == 4
    go_on("resume=auto")
    whole, parts = (end_of(Path("runs/gpt", name), step=4) for name in ("whole", "parts"))
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, parts[name])] == []
    assert rows(Path("runs/gpt/whole")) == rows(Path("runs/gpt/parts"))
    assert main(["train", "resume=runs/gpt/parts"]) == 1
    assert "is finished at step 4 of 4: type trainer.max_steps=8 to go on" in capsys.readouterr().err


def test_a_run_of_epochs_goes_on_in_the_middle_of_one_and_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], told_at: Callable[[int], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["model.dim=8", "model.num_layers=1", "data.seq_len=512", "data.batch_size=20", "data.micro_batch_size=20"]
    epochs = ["trainer.max_steps=-1", "schedule=constant", "samples.length=0", f"data.cache_dir={tmp_path / 'cache'}"]
    settings = [*TINY, *ONE, *tiny, *epochs]
    assert main(["train", "run_dir=whole", *settings, "trainer.max_epochs=2"]) == 0
    told_at(2)
    assert main(["train", "run_dir=parts", *settings, "trainer.max_epochs=1"]) == 128 + signal.SIGTERM
    assert main(["train", "resume=parts"]) == 0
    assert "resume=parts trainer.max_epochs=2" in capsys.readouterr().out
    assert main(["train", "resume=parts"]) == 1
    told = "parts is finished at step 4, the end of trainer.max_epochs=1: type trainer.max_epochs=2 to go on"
    assert capsys.readouterr().err == f"error: {told}\n"
    assert main(["train", "resume=parts", "trainer.max_epochs=2"]) == 0
    whole, parts = (end_of(Path(name), step=8) for name in ("whole", "parts"))
    assert [name for name, tensor in whole.items() if not torch.equal(tensor, parts[name])] == []


def test_runs_that_start_within_a_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "now")
    for _ in range(3):
        RunDirectory.default("gpt").path.mkdir(parents=True)
    first = f"now-{os.getpid()}"
    assert sorted(path.name for path in Path("runs/gpt").iterdir()) == [first, f"{first}-2", f"{first}-3"]
