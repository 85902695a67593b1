"""Writes checkpoints at the places from which training can go on exactly."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from txtrain.callbacks.clock import Clock
from txtrain.callbacks.steps import is_last_step, is_log_step, new_step
from txtrain.saving import BEST, LAST, PARTIAL, Save, checkpoint_name, point, prune, publish, remove

log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Saves after an optimizer step, or the validation that follows it: only there can Lightning's loops go on.

    Args:
        run_dir: of the run; checkpoints go to `checkpoints/` in it.
        save: when, and how many to keep.
        clock: stopped while saving.
    """

    def __init__(self, *, run_dir: Path, save: Save, clock: Clock) -> None:
        self.folder, self.save, self.clock = run_dir / "checkpoints", save, clock
        self.best = math.inf
        self._step = 0
        self._due = self._stop = False
        self._saved_at = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            for partial in self.folder.glob(f"*{PARTIAL}"):
                remove(partial)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self._saved_at = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Who asked to stop within a step, such as `trainer.max_time`, gets it at the step's end, where a run can go on.
        self._stop = self._stop or trainer.should_stop
        trainer.should_stop = self._stop and new_step(trainer, self._step)
        if not new_step(trainer, self._step):
            return
        self._step = trainer.global_step
        self._due = self._due or self._is_due(trainer)
        if self._due and not _validation_follows(trainer):
            self._write(trainer)

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        loss = task.validation["validation/loss"]
        if loss < self.best:
            before, self.best = self.best, loss
            if not self._write(trainer, best=True):
                self.best = before
        elif self._due:
            self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _is_due(self, trainer: Trainer) -> bool:
        if is_last_step(trainer):
            return True
        if self.save.seconds is None:
            return trainer.global_step % (self.save.steps or 1) == 0
        # Clocks differ, so the ranks agree; only where they wait for each other anyway.
        if trainer.world_size > 1 and not is_log_step(trainer):
            return False
        due = time.monotonic() - self._saved_at >= self.save.seconds
        return trainer.strategy.reduce_boolean_decision(due, all=False)

    def _write(self, trainer: Trainer, *, best: bool = False) -> bool:
        """Whether a checkpoint was written. A full disk or a lost folder does not end the training."""
        path = self.folder / checkpoint_name(trainer.global_step)
        partial = path.with_name(path.name + PARTIAL)
        steps = (
            lambda: self.folder.mkdir(parents=True, exist_ok=True) if trainer.is_global_zero else None,
            lambda: self._save(trainer, partial),
            lambda: self._publish(partial, path, best=best) if trainer.is_global_zero else None,
        )
        with self.clock.stopped():
            # After each, the ranks agree whether to go on, so that none waits for another in vain.
            written = all(self._succeeds(trainer, step) for step in steps)
            if not written and trainer.is_global_zero:
                remove(partial)
        self._due, self._saved_at = False, time.monotonic()
        return written

    def _succeeds(self, trainer: Trainer, step: Callable[[], None]) -> bool:
        """Whether a step succeeds on all ranks."""
        error = None
        try:
            step()
        except OSError as caught:
            error = caught
            log.error("No checkpoint at step %d: %s. Training goes on.", trainer.global_step, error)
        return trainer.strategy.reduce_boolean_decision(error is None)

    def _save(self, trainer: Trainer, partial: Path) -> None:
        try:
            trainer.save_checkpoint(partial, weights_only=False)
        except OSError:
            trainer.strategy.barrier()  # where the other ranks wait
            raise

    def _publish(self, partial: Path, path: Path, *, best: bool) -> None:
        publish(partial, path)
        point(self.folder / LAST, path)
        if best:
            point(self.folder / BEST, path)
        prune(self.folder, keep=self.save.keep, newest=self._step)


def _validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates right after this batch; a checkpoint then waits, to hold its outcome too."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
