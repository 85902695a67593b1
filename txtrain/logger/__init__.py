"""Where a run reports to: the terminal and train.log, and the loggers of the `logger` group."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from txtrain.logger.endure import Row
from txtrain.logger.events import TensorBoard
from txtrain.logger.lines import BEST, LIBRARIES, LOG_ONLY, RESULT, setup_logging
from txtrain.logger.table import Table
from txtrain.logger.wandb_run import WandB, choose_mode
from txtrain.terminal import console

__all__ = [
    "BEST",
    "LIBRARIES",
    "LOG_ONLY",
    "RESULT",
    "Table",
    "TensorBoard",
    "WandB",
    "begin_loggers",
    "choose_mode",
    "chosen",
    "close_loggers",
    "console",
    "setup_logging",
]


def chosen(
    *,
    run_dir: Path,
    name: str,
    config: Mapping[str, Any],
    group: str | None = None,
    job: str | None = None,
    wandb: bool = False,
    tensorboard: bool = False,
    csv: bool = False,
    project: str = "txtrain",
    entity: str | None = None,
    tags: list[str] | None = None,
    timeout: int = 20,
) -> list[Logger]:
    """The loggers of a run. Each option of the group turns one on, so a list of options gives several.

    metrics.jsonl and train.log are written whatever the logger.

    Args:
        run_dir, name, config: of the run.
        group: the sweep that the run belongs to.
        job: what sets it apart there; without it W&B shows WANDB_NAME, or the name and the folder.
        wandb: Weights & Biases.
        tensorboard: TensorBoard files in `tensorboard/` of the run directory.
        csv: a table of the metrics, `metrics.csv` in the run directory.
        project, entity: where the run goes in W&B.
        tags: free words to find the run by in W&B.
        timeout: seconds to wait for W&B's server before logging into files.
    """
    loggers: list[Logger] = []
    if wandb:
        settings = {"project": project, "entity": entity, "tags": tags, "group": group}
        settings["name"] = job or os.environ.get("WANDB_NAME") or f"{name} {run_dir.name}"
        loggers.append(WandB(run_dir=run_dir, settings=settings, config=dict(config), timeout=timeout))
    if tensorboard:
        loggers.append(TensorBoard(run_dir=run_dir, config=config))
    if csv:
        loggers.append(Table(run_dir=run_dir))
    return loggers


def begin_loggers(loggers: list[Logger], *, step: int, rows: Sequence[Row], wandb_id: str | None) -> str | None:
    """Tells them after which step training goes on and which rows are before it, and returns the id of the W&B run.

    Args:
        loggers: of the run.
        step: that was restored; 0 at the start of a run.
        rows: of metrics.jsonl up to there.
        wandb_id: that the checkpoint holds.
    """
    for logger in loggers:
        if isinstance(logger, WandB):
            wandb_id = logger.begin(step=step, rows=rows, run_id=wandb_id)
        elif isinstance(logger, TensorBoard | Table):
            logger.begin(step=step, rows=rows)
    return wandb_id


def close_loggers(loggers: list[Logger], *, failed: bool = False) -> None:
    """Ends what the loggers have open, and says how to send what is still here."""
    for logger in loggers:
        if isinstance(logger, WandB):
            logger.close(exit_code=int(failed))
        else:
            logger.finalize("failed" if failed else "success")
