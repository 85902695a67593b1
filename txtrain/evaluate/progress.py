"""How far an evaluation is: a bar in a terminal, plain lines elsewhere."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from txtrain.data.progress import Progress


class Telling(Callback):
    """Tells it of one model.

    Args:
        name: of the model.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._progress: Progress | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress = Progress(f"evaluating {self.name}", sum(trainer.num_val_batches), unit="batches")
        self._progress.__enter__()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self._progress is not None:
            self._progress.advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.stop()

    def stop(self) -> None:
        """Also without a start."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None
