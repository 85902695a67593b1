"""`trainer.max_time`: a budget of time, which the schedule and the time left follow."""

import math
import time
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from txtrain.callbacks.steps import new_step


class Budget(Callback):
    """Ends training at the first optimizer step after the budget is spent, and tells how many steps it is enough for.

    Everything from the first step on counts: training, validation, samples, checkpoints. All ranks go by the clock of
    the first, as it was one step ago, so that they have the same learning rate, end at the same step, and none waits.

    Args:
        seconds: of the budget; None for none.
    """

    def __init__(self, *, seconds: float | None) -> None:
        self.seconds = seconds
        self.spent = 0.0  # on all ranks
        self._spent_before = 0.0  # by the runs that this one goes on from
        self._began: float | None = None
        self._per_step: float | None = None  # seconds
        self._step = 0  # latest in this process
        self._latest = 0  # that `spent` is of
        self._first: tuple[int, float] | None = None  # the first step seen in this process, and what was spent then
        self._group: Any = None
        self._asked: tuple[Any, Tensor] | None = None

    @property
    def left(self) -> float | None:
        """Seconds, None if there is no budget."""
        return None if self.seconds is None else max(0.0, self.seconds - self.spent)

    @property
    def steps(self) -> float:
        """How many optimizer steps the budget is expected to be enough for in all; infinity while that is unknown."""
        if self.left is None or self._per_step is None:
            return math.inf
        return self._latest + self.left / self._per_step

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.seconds is not None:
            pl_module.steps_in_time = lambda: self.steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began, self._step = time.monotonic(), trainer.global_step
        self._latest = self._step
        if self.seconds is not None and trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.seconds is None or not new_step(trainer, self._step):
            return
        begins, self._step = self._latest, trainer.global_step
        step, self.spent = self._agree()
        if step > begins:
            self._measure(step, begins)
        if self.left == 0:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._asked:
            self._asked[0].wait()

    def state_dict(self) -> dict[str, Any]:
        return {"spent": self._clock(), "per_step": self._per_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.spent = self._spent_before = state_dict["spent"]
        self._per_step = state_dict["per_step"]

    def _agree(self) -> tuple[int, float]:
        """A step and what was spent after it, by the clock of the first rank: of one step ago if there are others."""
        if self._group is None:
            return self._step, self._clock()
        before, now = self._asked, torch.tensor([self._step, self._clock()], dtype=torch.float64)
        self._asked = dist.broadcast(now, src=0, group=self._group, async_op=True), now
        if before is None:
            return self._latest, self.spent
        before[0].wait()
        step, spent = before[1].tolist()
        return int(step), spent

    def _measure(self, step: int, begins: int) -> None:
        """Seconds per step, without the first of this process, which also compiles."""
        self._latest = step
        if self._first is None:
            self._first = step, self.spent
            if self._per_step is None:
                self._per_step = max(self.spent - self._spent_before, 1e-9) / (step - begins)
        else:
            first, spent = self._first
            self._per_step = max(self.spent - spent, 1e-9) / (step - first)

    def _clock(self) -> float:
        return self._spent_before + (0.0 if self._began is None else time.monotonic() - self._began)
