"""The average of a model's weights over its training, which is validated in their place."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from txtrain.callbacks.steps import new_step


class Averaging(Callback):
    """After each optimizer step average ← average + (1 - d) · (weight - average), an exponential moving average
    (https://epubs.siam.org/doi/10.1137/0330046).

    The n-th step has d = min(decay, (n + 1) / (n + 10)): in a short training the first weights would count for much.
    Averages are kept as moments of the optimizer: checkpoints hold them under every strategy, and who uses the model
    afterwards gets them.

    Args:
        decay: d; 0 keeps no averages. 0.999 is about the latest 1000 steps.
    """

    def __init__(self, *, decay: float = 0.0) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema.decay is {decay}: give a share below 1, such as ema.decay=0.999, or 0 for none")
        self.decay = decay
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.decay and new_step(trainer, self._step):
            self._step = trainer.global_step
            strategy: Any = trainer.strategy
            strategy.follow_weights(1.0 - min(self.decay, (self._step + 1) / (self._step + 10)))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exchange(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._exchange(trainer)

    def _exchange(self, trainer: Trainer) -> None:
        if self.decay and trainer.state.fn == "fit" and trainer.global_step:  # there are none before the first step
            strategy: Any = trainer.strategy
            strategy.exchange_averages()
