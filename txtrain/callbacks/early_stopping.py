"""`callbacks=early_stopping`: Lightning's EarlyStopping, on metrics of a run's validation."""

from collections.abc import Sequence
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from txtrain.measures import Mode, find_measure


class EarlyStopping(LightningEarlyStopping):
    """Ends a run whose metric no longer gets better, after a validation, with a checkpoint.

    The validation before the first step of fine-tuning does not count.

    Args:
        monitor: a metric of validation, such as `loss` or `f1`.
        mode: whether less (`min`) or more (`max`) is better; None: as is known of the metric.
        patience: validations in a row without a better value that end the run.
        min_delta: by how much a value must be better.
        stopping_threshold: a value that is good enough to end the run at once.
        divergence_threshold: a value that is bad enough to.
        check_finite: whether a value that is not finite ends the run.
    """

    def __init__(
        self,
        *,
        monitor: str = "loss",
        mode: Mode | None = None,
        patience: int = 3,
        min_delta: float = 0.0,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_finite: bool = True,
    ) -> None:
        if patience < 1:
            raise ValueError(f"callbacks.early_stopping.patience is {patience}: give 1 or more validations")
        if min_delta < 0:
            raise ValueError(f"callbacks.early_stopping.min_delta is {min_delta}: give 0 or more")
        self._typed, self._mode = monitor, mode
        self._options: dict[str, Any] = {
            "patience": patience,
            "min_delta": min_delta,
            "stopping_threshold": stopping_threshold,
            "divergence_threshold": divergence_threshold,
            "check_finite": check_finite,
        }
        super().__init__(monitor=monitor, mode=mode or "min", check_on_train_epoch_end=False, **self._options)

    def watch(self, measured: Sequence[str]) -> None:
        """Finds the metric among those that the run's validation reports.

        Raises:
            UserError: it is none of them.
        """
        monitor, mode = find_measure("callbacks.early_stopping.monitor", self._typed, measured, self._mode)
        super().__init__(monitor=monitor, mode=mode, check_on_train_epoch_end=False, **self._options)

    @property
    def why(self) -> str | None:
        """Why it ended the run, None if it did not."""
        reason = self.stopping_reason_message
        return reason and f"callbacks=early_stopping: {reason.removesuffix(' Signaling Trainer to stop.')}"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The validation before fine-tuning measures what the run starts from; a run ends by its own.
        if trainer.global_step:
            super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The patience is what is typed now, and a run that was ended goes on to its next validation.
        super().load_state_dict({**state_dict, "patience": self.patience, "stopping_reason_message": None})
