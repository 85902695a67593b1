"""A validation before the first step of fine-tuning, to compare with what comes of it."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from txtrain.callbacks.random_state import capture, restore


class FirstValidation(Callback):
    """Validates the model that a run starts from, and leaves no trace in training.

    Args:
        wanted: whether the run starts from a trained model.
    """

    def __init__(self, *, wanted: bool) -> None:
        self.wanted = wanted

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wanted and not trainer.global_step:
            state = capture()
            validate(trainer)
            restore(state)


def validate(trainer: Any) -> None:
    """As Lightning does between two training batches."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
