"""What checkpointing does in the run at hand, measured."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from lightning import Callback, LightningModule, Trainer

from txtrain.model.saved import Measured, measure
from txtrain.naming import option_name

log = logging.getLogger(__name__)


class Activations(Callback):
    """Counts forward passes and what is kept in the first micro-batch, so that one sees that the policy applies.

    Args:
        config: the run's, plain.
    """

    def __init__(self, *, config: Mapping[str, Any]) -> None:
        # Compiled blocks cannot be looked into.
        self.measures = "checkpointing" in config and not config.get("compile", False)
        self.policy = option_name("checkpointing", config["checkpointing"]) if "checkpointing" in config else ""
        self.measured: Measured | None = None
        self._measuring = ExitStack()

    def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, batch_idx: int) -> None:
        if self.measures and self.measured is None and trainer.is_global_zero:
            self.measured = self._measuring.enter_context(measure(task.model))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.measures and self.measured is not None:
            self._measuring.close()
            self.measures = False
            log.info("%-13s  %s: %s", "checkpointing", self.policy, self.measured)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._measuring.close()
