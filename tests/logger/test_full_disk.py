"""A disk that is full, and a W&B that dies: the run goes on and says so once."""

import json
import os
import sys
from pathlib import Path

import pytest
import wandb as client

from tests import forked
from tests.callbacks.tiny import Run
from tests.logger.killed import ROOT, new_loggers
from tests.offline_wandb import read
from txtrain.logger import close_loggers
from txtrain.saving import find_checkpoint

# From step 4 on no file of the process may be longer than it can be, which is what a full disk is to it.
FULL = """
import logging, resource, signal, sys
from dataclasses import replace
from pathlib import Path
from lightning import Callback
from tests import forked
from tests.callbacks.tiny import Run
from tests.logger.killed import new_loggers
from txtrain.logger import close_loggers, setup_logging

class Fill(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (256, resource.RLIM_INFINITY))

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run_dir = Path(sys.argv[1])
run_dir.mkdir()
setup_logging(run_dir, 0)
run = Run(run_dir, max_steps=9, every=3, loggers=new_loggers(run_dir, sys.argv[2]), extra=[Fill()])
run.checkpoints.save = replace(run.checkpoints.save, retry_for=0.5)
run.fit()
run.summary.finish(run.trainer, run.task)
close_loggers(run.trainer.loggers)
assert run.trainer.global_step == 9
"""


@pytest.mark.parametrize("logger", ["none", "tensorboard", "wandb"])
def test_a_full_disk_ends_no_training_and_is_told_once(tmp_path: Path, logger: str) -> None:
    run_dir = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", FULL, str(run_dir), logger]
    run = forked.run(command, cwd=ROOT, env=environment, timeout=200)
    assert run.returncode == 0, run.stderr
    if logger != "tensorboard":  # its own thread shows how it ended
        assert "Traceback" not in run.stderr + run.stdout, run.stderr
    assert [run.stdout.count(f"{name} cannot be written") for name in ("metrics.jsonl", "train.log")] == [1, 1]
    assert run.stdout.count("summary.json cannot be written") == 1
    assert run.stdout.count("TensorBoard lacks what comes now") == (logger == "tensorboard")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert find_checkpoint(run_dir) == run_dir / "checkpoints/step_00000003.ckpt"


# The process with which W&B writes is killed before the third step.
KILLED_SERVICE = """
import os, signal, sys
from pathlib import Path
from lightning import Callback
from tests import forked
from tests.callbacks.tiny import Run
from tests.logger.killed import new_loggers
from txtrain.logger import close_loggers, setup_logging

class Kill(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 2:
            children = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
            (service,) = [pid for pid in children if "wandb-core" in Path(f"/proc/{pid}/comm").read_text()]
            os.kill(int(service), signal.SIGKILL)

run_dir = Path(sys.argv[1])
run_dir.mkdir()
setup_logging(run_dir, 0)
run = Run(run_dir, max_steps=5, every=5, loggers=new_loggers(run_dir, "wandb"), extra=[Kill()]).fit()
close_loggers(run.trainer.loggers)
assert run.trainer.global_step == 5
"""


def test_training_goes_on_without_wandb_and_the_next_run_brings_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED_SERVICE, str(run_dir)]
    killed = forked.run(command, cwd=ROOT, env=environment, timeout=200)
    assert killed.returncode == 0, killed.stderr
    assert killed.stdout.count("W&B lacks what comes now") == 1
    run = Run(run_dir, max_steps=7, loggers=new_loggers(run_dir, "wandb")).fit(find_checkpoint(run_dir))
    close_loggers(run.trainer.loggers)
    client.teardown()
    (segment,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    assert [row["_step"] for row in read(segment).history] == [1, 2, 3, 4, 5, 6, 7]
