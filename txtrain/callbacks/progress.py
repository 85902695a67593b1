"""Progress of training and validation: a bar in a terminal, plain lines elsewhere."""

import logging
import math
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from txtrain.callbacks.budget import Budget
from txtrain.callbacks.clock import Clock
from txtrain.callbacks.metrics import Metrics
from txtrain.callbacks.steps import is_log_step, new_step
from txtrain.logger import BEST, LOG_ONLY
from txtrain.printable import duration, short
from txtrain.terminal import Phase, console

log = logging.getLogger(__name__)


class Progress(Callback):
    """Loss, speed and time left, after each logged step.

    Args:
        metrics: where the numbers come from.
        clock: of training alone.
        budget: of time, if there is one.
    """

    def __init__(self, *, metrics: Metrics, clock: Clock, budget: Budget) -> None:
        self.metrics, self.clock, self.budget = metrics, clock, budget
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._total: int | None = None
        self._loading = Phase("loading the model")
        self._validating = Phase("validating")
        self._text = ""
        self._first = self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            self._loading.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._loading.stop()
        self._first = self._step = trainer.global_step
        total = trainer.estimated_stepping_batches
        self._total = int(total) if total != float("inf") else None
        if trainer.is_global_zero and console.is_terminal:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=console)
            self._task = self._bar.add_task("", total=self._total, completed=self._step)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero or not new_step(trainer, self._step):
            return
        self._step = trainer.global_step
        text = self._describe() if is_log_step(trainer) else None
        self._text = text or self._text
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, total=self._expected(), description=text)
        if text is not None:
            expected = self._expected()
            about = "~" if expected != self._total else ""
            total = "" if expected is None else f"/{about}{expected}"
            log.info("step %d%s  %s", self._step, total, text, extra=LOG_ONLY if self._bar is not None else None)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self._bar is None:
            self._validating.start()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self._bar is not None:
            done, total = batch_idx + 1, sum(trainer.num_val_batches)
            self._bar.update(self._task, description=f"validating {done}/{total}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating.stop()
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        if self._bar is not None:
            self._bar.update(self._task, description=self._text)
        of_sets: dict[str, list[str]] = {}
        for name, value in self.metrics.validation.items():
            part, _, metric = name.removeprefix("validation/").rpartition("/")
            of_sets.setdefault(part, []).append(f"{metric} {value:.4f}")
        checkpoints: Any = trainer.checkpoint_callback
        better = checkpoints.is_better(self.metrics.validation)
        for part, numbers in of_sets.items():
            of = f" of {part}" if part else ""
            style = BEST if better and not part else None
            log.info("validation%s at step %d  %s", of, trainer.global_step, "  ".join(numbers), extra=style)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        self._loading.stop()
        self._validating.stop()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _expected(self) -> int | None:
        """Steps in all, by whichever of steps and time is expected to end training first."""
        end = min(math.inf if self._total is None else self._total, max(self._step, self.budget.steps))
        return round(end) if end < math.inf else None

    def _describe(self) -> str:
        row = self.metrics.train
        parts = [f"loss {row['train/loss']:.4f}", f"lr {row['train/lr']:.2e}"]
        unit = self.metrics.unit
        parts.append(f"{short(row[f'train/{unit}_per_second'])} {unit}/s")
        if "train/mfu" in row:
            parts.append(f"mfu {row['train/mfu']:.0%}")
        ends = [] if self.budget.left is None else [self.budget.left]
        if self._total is not None:
            per_step = self.clock.seconds / (self._step - self._first)
            ends.append(per_step * (self._total - self._step))
        if ends:
            parts.append(f"{duration(min(ends))} left")
        return "  ".join(parts)
