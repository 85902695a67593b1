"""A validation after the last step, whatever the interval."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from txtrain.callbacks.steps import is_last_step


class FinalValidation(Callback):
    """Asks to stop at the last step: Lightning validates when it stops on request, but not when it reaches a limit."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_last_step(trainer):
            trainer.should_stop = True
