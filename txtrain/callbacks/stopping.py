"""Ends a run that was told to end at a place from which it goes on exactly."""

import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from txtrain.callbacks.checkpoints import Checkpoints, validation_follows
from txtrain.callbacks.first_validation import validate
from txtrain.callbacks.steps import is_last_step, new_step
from txtrain.callbacks.summary import command_to_go_on
from txtrain.signals import Interrupted, inbox

log = logging.getLogger(__name__)


class Stopping(Callback):
    """Answers SIGTERM, SIGUSR1, SIGHUP and Ctrl-C: a checkpoint after this optimizer step, then the end.

    There is no validation then.

    All ranks act at the same step although only one of them may have been told: at the end of a step they start to
    take the largest of their signals, and look at the outcome at the end of the next, so that no rank and no GPU waits.

    A validation that was due or under way is made up for when the run goes on.

    Args:
        run_dir: of the run.
        checkpoints: writes the checkpoint.
    """

    def __init__(self, *, run_dir: Path, checkpoints: Checkpoints) -> None:
        self.run_dir, self.checkpoints = run_dir, checkpoints
        self._validation_missing = False
        self._step = 0
        self._group: Any = None
        self._asked: tuple[Any, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning's own answers: it saves where no run can go on, and asks the first rank at every micro-batch.
        trainer._signal_connector.register_signal_handlers = _do_nothing
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _do_nothing

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        inbox.note(speaks=trainer.is_global_zero)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")
        if self._validation_missing:
            self._validation_missing = False
            validate(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if new_step(trainer, self._step):
            self._step = trainer.global_step
            self._stop_if_told(trainer, validation_missing=validation_follows(trainer))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._stop_if_told(trainer, validation_missing=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        inbox.end_at_once()
        if self._asked:
            self._asked[0].wait()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        inbox.end_at_once()

    def state_dict(self) -> dict[str, Any]:
        return {"validation_missing": self._validation_missing}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validation_missing = state_dict["validation_missing"]

    def _stop_if_told(self, trainer: Trainer, *, validation_missing: bool) -> None:
        told = self._agree()
        if not told or is_last_step(trainer):  # after the last step all that is left is to end as usual
            return
        end = Interrupted(told, agreed=True)
        self._validation_missing = validation_missing
        saved = "before the first step"
        if trainer.global_step:  # else it starts anew
            self.checkpoints.save_now(trainer)
            saved = self.checkpoints.lost(trainer) or f"saved at step {trainer.global_step}"
        if trainer.is_global_zero:
            log.info("%s, %s: to go on, type %s", end, saved, command_to_go_on(self.run_dir))
        raise end

    def _agree(self) -> int:
        """The signal that ends the run on all ranks: what any of them had been told one call ago."""
        if self._group is None:
            return inbox.told
        before, told = self._asked, torch.tensor(inbox.told)
        self._asked = dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group, async_op=True), told
        if before is None:
            return 0
        before[0].wait()
        return int(before[1])


def _do_nothing() -> None:
    pass
