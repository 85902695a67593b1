"""Progress of an evaluation: a bar on a terminal, plain lines elsewhere."""

import math
from typing import Any

from lightning import Callback, LightningModule, Trainer

from txtrain.data.progress import Progress


class EvaluationProgress(Callback):
    """Shows how far the evaluation of one model is.

    Args:
        name: of the model.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._progress: Progress | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = sum(trainer.num_val_batches)
        total = batches if math.isfinite(batches) else None
        self._progress = Progress(f"evaluating {self.name}", total, unit="batches").__enter__()

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        if self._progress is not None:
            self._progress.advance()

    def on_validation_end(self, *_: Any) -> None:
        self._stop()

    def on_exception(self, *_: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None
