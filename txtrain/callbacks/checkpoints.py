"""Writes checkpoints at the places from which training can go on exactly."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from txtrain.callbacks.clock import Clock
from txtrain.callbacks.steps import is_last_step, is_log_step, new_step
from txtrain.errors import UserError
from txtrain.logger import LOG_ONLY
from txtrain.measures import find_measure
from txtrain.saving import (
    BASE,
    BEST,
    PARTIAL,
    WEIGHT,
    Part,
    Save,
    check_complete,
    checkpoint_name,
    link,
    linked_step,
    partials,
    prune,
    publish,
    remove,
    write_manifest,
)
from txtrain.signals import inbox
from txtrain.strategy import not_finite
from txtrain.strategy.shards import whole_shape

RETRY = 30.0  # seconds from a checkpoint that could not be written to the next attempt
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds between attempts at the last step; the last one repeats
BEYOND_HELP = (  # of weights, or of the optimizer's moments
    "the {kind} are not finite at step {step} ({name}), which no later step mends, and nothing more is saved: start a "
    "new run with on_spike=skip or a lower optimizer.lr"
)
GRACE = 10.0  # seconds of attempts for a run that was told to end, which may be killed soon

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Writing:
    """What is being written: what it will be called, which weights it must have, and whether it is the best."""

    path: Path
    weights: Mapping[str, nn.Parameter]
    step: int
    best_before: "tuple[float, int | None] | None" = None  # the best until then, and its step, if this is better
    since: float = field(default_factory=time.monotonic)

    @property
    def partial(self) -> Path:
        return self.path.with_name(self.path.name + PARTIAL)


class Checkpoints(Checkpoint):
    """Saves after an optimizer step, or the validation that follows it: only there can Lightning's loops go on.

    Args:
        run_dir: of the run; checkpoints go to `checkpoints/` in it.
        save: when, and how many to keep.
        clock: stopped while saving.
    """

    def __init__(self, *, run_dir: Path, save: Save, clock: Clock) -> None:
        self.folder, self.save, self.clock = run_dir / "checkpoints", save, clock
        self.metric, self.sign = "validation/loss", 1.0  # times which less is better
        self.best = math.inf  # the lowest of sign times metric
        self.best_step: int | None = None  # of the checkpoint that has it
        self.saved_step = 0  # of the newest checkpoint
        self.failure: str | None = None  # why the latest attempt failed
        self._failed_at = 0.0
        self._step = 0
        self._due = self._stop = False
        self._unfinished: _Writing | None = None
        self._seconds_to_copy = 0.0
        self._saved_at = time.monotonic()

    def watch(self, measured: Sequence[str]) -> None:
        """Finds the metric of `save.best` among those that the run's validation reports.

        Raises:
            UserError: it is none of them.
        """
        self.metric, mode = find_measure("save.best", self.save.best, measured, self.save.best_mode)
        self.sign = -1.0 if mode == "max" else 1.0

    def is_better(self, validation: Mapping[str, float]) -> bool:
        """Whether a validation is better than all before it."""
        return self.sign * validation.get(self.metric, math.nan) < self.best

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            for partial in partials(self.folder):
                remove(partial)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self._saved_at = trainer.global_step, time.monotonic()
        if not self.saved_step:  # else a validation that was made up for has saved one
            self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            self._link(trainer.global_step)

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
        self._look_after_writing(trainer)
        if self._due and not validation_follows(trainer):
            self._write(trainer)

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        if not trainer.global_step or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self.finish_writing(trainer)  # what failed is no best
        if self.is_better(task.validation):
            before = self.best, self.best_step
            self.best, self.best_step = self.sign * task.validation[self.metric], trainer.global_step
            self._write(trainer, best_before=before)
        elif self._due or (trainer.should_stop and self.saved_step != trainer.global_step):  # such as early stopping
            self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.sign * self.best, "best_step": self.best_step, "metric": self.metric, "sign": self.sign}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, sign = state_dict.get("metric", "validation/loss"), state_dict.get("sign", 1.0)
        if (before, sign) != (self.metric, self.sign):
            log.warning("The best checkpoint was that of %s: that of %s begins anew.", before, self.metric)
            return
        self.best = self.sign * state_dict["best"]
        # Checkpoints of before say no step: the link, which was written after them, does.
        self.best_step = state_dict.get("best_step", linked_step(self.folder, BEST))

    def _is_due(self, trainer: Trainer) -> bool:
        if is_last_step(trainer) or self._is_due_again(trainer):
            return True
        if self.save.seconds is None:
            return trainer.global_step % (self.save.steps or 1) == 0
        # Clocks differ, so the ranks agree; only where they wait for each other anyway.
        if trainer.world_size > 1 and not is_log_step(trainer):
            return False
        due = time.monotonic() - self._saved_at >= self.save.seconds
        return trainer.strategy.reduce_boolean_decision(due, all=False)

    def _is_due_again(self, trainer: Trainer) -> bool:
        """Whether a checkpoint that could not be written is to be tried again; the ranks agree, as above."""
        if self.failure is None or (trainer.world_size > 1 and not is_log_step(trainer)):
            return False
        due = time.monotonic() - self._failed_at >= RETRY
        return trainer.strategy.reduce_boolean_decision(due, all=False)

    def lost(self, trainer: Trainer) -> str | None:
        """Which step is not saved and why, None if the last one is."""
        if self.failure is None or self.saved_step == trainer.global_step:
            return None
        newest = f"the newest checkpoint is of step {self.saved_step}" if self.saved_step else "there is no checkpoint"
        return f"step {trainer.global_step} could not be saved ({self.failure}): {newest}"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.finish_writing(trainer)

    def save_now(self, trainer: Trainer) -> None:
        """Writes a checkpoint to its end; on all ranks, after a whole optimizer step or within a validation."""
        self._save(trainer)
        self.finish_writing(trainer)
        self._try_again(trainer, seconds=min(GRACE, self.save.retry_for))

    def _look_after_writing(self, trainer: Trainer) -> None:
        """Gives what was written in the background its name soon; only where the ranks wait for each other anyway."""
        if self._unfinished and (trainer.world_size == 1 or is_log_step(trainer)):
            strategy: Any = trainer.strategy
            if strategy.reduce_boolean_decision(strategy.writing.done()):
                self.finish_writing(trainer)

    def _write(self, trainer: Trainer, *, best_before: tuple[float, int | None] | None = None) -> None:
        """Writes a checkpoint, or begins to. A full disk or a lost folder does not end the training."""
        claim = (best_before, self.best, self.best_step) if best_before else None
        self._save(trainer, best_before=best_before)
        if is_last_step(trainer):
            self.finish_writing(trainer)
            self._try_again(trainer, seconds=self.save.retry_for, unless_told=True, claim=claim)

    def _try_again(
        self,
        trainer: Trainer,
        *,
        seconds: float,
        unless_told: bool = False,
        claim: tuple[tuple[float, int | None], float, int | None] | None = None,
    ) -> None:
        """Tries for so long to save the step that training ends at, if that failed.

        Args:
            seconds: that it may take.
            unless_told: whether a signal ends it.
            claim: the best value and its step, before and with this checkpoint, if it is the best.
        """
        strategy: Any = trainer.strategy
        began, waits = time.monotonic(), chain(WAITS, repeat(WAITS[-1]))
        while self.saved_step != trainer.global_step:
            left = began + seconds - time.monotonic()
            if not strategy.reduce_boolean_decision(left > 0 and not (unless_told and inbox.told)):
                return
            log.warning("Trying again to save step %d, for %.0f s more.", trainer.global_step, left)
            time.sleep(max(0.0, min(next(waits), left)))
            best_before = None
            if claim:
                best_before, self.best, self.best_step = claim
            self._save(trainer, best_before=best_before)
            self.finish_writing(trainer)

    def _save(self, trainer: Trainer, *, best_before: tuple[float, int | None] | None = None) -> None:
        self.finish_writing(trainer)
        strategy: Any = trainer.strategy
        step = trainer.global_step
        path = self.folder / checkpoint_name(step)
        with self.clock.stopped():
            if found := not_finite(trainer.lightning_module):  # which must not take a good one's place
                raise UserError(BEYOND_HELP.format(kind=found[0], name=found[1], step=step))
            if self._write_frozen(trainer):
                self._unfinished = _Writing(path=path, weights=strategy.changing(), step=step, best_before=best_before)
                trainer.save_checkpoint(self._unfinished.partial, weights_only=False)
                self._seconds_to_copy = time.monotonic() - self._unfinished.since
                if not self.save.background:
                    self.finish_writing(trainer)
            elif best_before is not None:
                self.best, self.best_step = best_before
        self._due, self._saved_at = False, time.monotonic()

    def _write_frozen(self, trainer: Trainer) -> bool:
        """Writes the weights that no checkpoint holds, once in a run; whether they are there."""
        strategy: Any = trainer.strategy
        frozen, path = strategy.frozen(), self.folder / BASE
        if not frozen or strategy.broadcast(path.exists()):
            return True
        self._unfinished = _Writing(path=path, weights=frozen, step=0)
        strategy.save_frozen(self._unfinished.partial)
        return self.finish_writing(trainer)

    def finish_writing(self, trainer: Trainer) -> bool:
        """Waits for what is being written, and gives it its name once all ranks are done; whether that went well."""
        if self._unfinished is None:
            return True
        writing, self._unfinished = self._unfinished, None
        strategy: Any = trainer.strategy
        parts = self._agree(trainer, writing, strategy.writing.result)
        published = parts is not None and None is not self._agree(
            trainer, writing, lambda: self._publish(trainer, writing, parts)
        )
        if not published:
            if writing.best_before is not None:
                self.best, self.best_step = writing.best_before
            if trainer.is_global_zero:
                remove(writing.partial)
            self._failed_at = time.monotonic()
        elif writing.path.name != BASE:
            if self.failure is not None:
                log.info("Checkpoints are written again: step %d is saved.", writing.step)
            self.saved_step, self.failure = writing.step, None
        return published

    def _agree(self, trainer: Trainer, writing: "_Writing", step: Callable[[], list[Part]]) -> list[Part] | None:
        """What a step gave on all ranks, None if it failed on any, so that none waits for another in vain."""
        outcome: list[Part] | str
        try:
            outcome = step()
        except OSError as error:
            outcome = str(error)
            goes_on = "" if is_last_step(trainer) else " Training goes on, and it is tried again."
            log.error("No checkpoint at step %d: %s.%s", trainer.global_step, error, goes_on)
        outcomes: list[Any] = [outcome]
        if trainer.world_size > 1:
            outcomes = [None] * trainer.world_size
            dist.all_gather_object(outcomes, outcome)
        failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
        self.failure = failures[0] if failures else self.failure
        return None if failures else [part for parts in outcomes for part in parts]

    def _publish(self, trainer: Trainer, writing: "_Writing", parts: list[Part]) -> list[Part]:
        strategy: Any = trainer.strategy
        if trainer.is_global_zero:
            path, partial = writing.path, writing.partial
            check_complete(partial, {WEIGHT + name: whole_shape(weight) for name, weight in writing.weights.items()})
            made_by = {"ranks": trainer.world_size, "strategy": strategy.option}
            write_manifest(partial, step=writing.step, parts=parts, **made_by)
            publish(partial, path)
            if path.name != BASE:
                self._link(writing.step)
                prune(self.folder, keep=self.save.keep, newest=writing.step, best=self.best_step)
            size, seconds = sum(part.bytes for part in parts), time.monotonic() - writing.since
            told = (path.name, size, self._seconds_to_copy, seconds)
            log.info("%s: %d bytes, copied in %.2f s, written after %.2f s", *told, extra=LOG_ONLY)
        return []

    def _link(self, step: int) -> None:
        """Writes the links that follow from what is there, which a process killed before this left behind.

        A checkpoint is found without its links, so an error here is none of the checkpoint's.
        """
        try:
            link(self.folder, newest=step, best=self.best_step)
        except OSError as error:
            log.warning("The links in %s cannot be written (%s): the newest checkpoint counts.", self.folder, error)


def validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates right after this batch; a checkpoint then waits, to hold its outcome too."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
