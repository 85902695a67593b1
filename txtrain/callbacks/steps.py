"""Optimizer steps, as seen from hooks that run at every micro-batch."""

from typing import Any

from lightning import Trainer


def new_step(trainer: Trainer, latest: int) -> bool:
    """Whether the micro-batch that just ended finished an optimizer step after `latest`."""
    return trainer.global_step > latest


def is_last_step(trainer: Trainer) -> bool:
    """Whether training ends after the micro-batch that just ended."""
    if trainer.should_stop or trainer.global_step == trainer.max_steps:
        return True
    return trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs


def is_log_step(trainer: Any) -> bool:
    """Every `trainer.log_every_n_steps`, and at the first and the last step."""
    step = trainer.global_step
    return step == 1 or step % trainer.log_every_n_steps == 0 or is_last_step(trainer)
