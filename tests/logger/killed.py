"""A run that kills itself at a step: python killed.py RUN_DIR LOGGER STEP PADDING, with a checkpoint every 4 steps."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from lightning import Callback

from tests import forked
from tests.callbacks.tiny import Run
from txtrain import logger as loggers

SETTINGS: dict[str, Any] = {"max_steps": 9, "validate": 4, "every": 4}
ROOT = Path(__file__).parents[2]


class Kill(Callback):
    """After all that a step does, a checkpoint too."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Pad(Callback):
    """Rows so long that W&B, which writes 32 KiB at a time, has written most of them."""

    def __init__(self, length: int) -> None:
        self.length = length

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        for logger in trainer.loggers:
            logger.experiment.log({"padding": "x" * self.length}, step=trainer.global_step)


def new_loggers(run_dir: Path, logger: str) -> list[Any]:
    """Of one name or of several, as in `wandb,csv`."""
    chosen = {name: True for name in logger.split(",") if name != "none"}
    return loggers.chosen(run_dir=run_dir, name="gpt", config={"name": "gpt"}, **chosen)


def killed_run(run_dir: Path, logger: str, step: int, *, padding: int = 0) -> None:
    """Returns when it is dead."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(run_dir), logger, str(step), str(padding)]
    run = forked.run(command, cwd=ROOT, env=environment, timeout=200)
    assert run.returncode == -signal.SIGKILL, run.stderr


if __name__ == "__main__":
    run_dir, logger, step, padding = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    run_dir.mkdir()
    extra = [Kill(step), *([Pad(padding)] if padding else [])]
    Run(run_dir, **SETTINGS, loggers=new_loggers(run_dir, logger), extra=extra).fit()
