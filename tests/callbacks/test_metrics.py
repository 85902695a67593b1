"""The rows of a run."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger, Logger

from tests.callbacks.tiny import Run
from txtrain.callbacks import hardware
from txtrain.callbacks.clock import Clock


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


class Recorder(Logger):
    """A logger that remembers."""

    name, version = "recorder", "0"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append({"step": step, **metrics})

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def test_rows_at_the_first_each_nth_and_the_last_step(tmp_path: Path) -> None:
    recorder = Recorder()
    Run(tmp_path, max_steps=10, accumulation=2, validate=5, log_every_n_steps=4, loggers=[recorder]).fit()
    found = rows(tmp_path)
    assert [row["step"] for row in found if "train/loss" in row] == [1, 4, 8, 10]
    assert [row["step"] for row in found if "validation/loss" in row] == [5, 10]
    assert recorder.rows == found


def test_a_row_says_what_the_step_did(tmp_path: Path) -> None:
    run = Run(tmp_path, max_steps=4).fit()
    found = rows(tmp_path)
    # The schedule is 0.01 / (1 + steps before): the rate is that of the step itself, not of the next.
    assert [row["train/lr"] for row in found] == pytest.approx([0.01, 0.005, 0.01 / 3, 0.0025])
    assert [row["train/tokens"] for row in found] == [48, 96, 144, 176]  # 6 windows of 8, and 4 in the last of 22
    assert found[-1]["train/grad_norm"] == run.task.grad_norm.item()
    assert found[-1]["train/loss"] == run.task.step_loss()
    assert found[0]["train/loss"] == pytest.approx(math.log(11), abs=0.5)
    assert "train/mfu" not in found[0]  # a CPU's peak is not known


def test_memory_is_this_process_peak(tmp_path: Path) -> None:
    before = hardware.peak_memory(torch.device("cpu"))
    held = torch.ones(2**27)  # half a GiB more than ever before
    assert hardware.peak_memory(torch.device("cpu")) > before + 2**27
    del held


def test_mfu_where_the_peak_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txtrain.callbacks.metrics.peak_flops", lambda device: 1e9)
    run = Run(tmp_path, max_steps=3).fit()
    for row in rows(tmp_path):
        per_token = row["train/mfu"] * 1e9 / row["train/tokens_per_second"]
        assert per_token == pytest.approx(run.task.flops({"tokens": torch.zeros(1)}))


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 144G HBM3e", 989e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA RTX 6000 Ada Generation", 364e12),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA L400", None),
        ("Some other card", None),
    ],
)
def test_peaks(name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert hardware.peak_flops(torch.device("cuda")) == peak


class SlowValidation(Callback):
    def on_validation_batch_start(self, *_: Any) -> None:
        time.sleep(0.5)


def test_tokens_per_second_leaves_validation_out(tmp_path: Path) -> None:
    run = Run(tmp_path, max_steps=4, validate=2, extra=[SlowValidation()]).fit()
    slowest = min(row["train/tokens_per_second"] for row in rows(tmp_path) if "train/loss" in row)
    assert slowest > 48 / 0.5
    assert run.summary.metrics.units_per_second() > 48 / 0.5


def test_the_clock_stands_still_while_stopped() -> None:
    clock = Clock()
    with clock.stopped():
        pass
    assert clock.seconds == 0.0  # it did not go before, so it does not go after
    clock.start()
    with clock.stopped():
        inside = clock.seconds
        time.sleep(0.02)
        assert clock.seconds == inside
    assert clock.seconds > inside


def test_lightning_loggers_get_the_optimizer_step(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="csv", version=0)
    Run(tmp_path, max_steps=3, accumulation=3, loggers=[logger]).fit()
    table = (tmp_path / "csv/version_0/metrics.csv").read_text().splitlines()
    column = table[0].split(",").index("step")
    assert [line.split(",")[column] for line in table[1:]] == ["1", "2", "3"]
