"""Loss spikes: told with the samples that made them, and left out where asked to."""

import logging
import math
import shlex
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from txtrain.callbacks.checkpoints import BEYOND_HELP
from txtrain.callbacks.steps import is_log_step, new_step
from txtrain.data.order import samples_of_step
from txtrain.errors import UserError
from txtrain.logger import LOG_ONLY
from txtrain.strategy import DeepSpeed, clip_gradients, gradients_overflow, step_was_left_out, weight_not_finite

log = logging.getLogger(__name__)

# The window and the six deviations of OLMo-core's SkipStepOptimizer (https://github.com/allenai/OLMo-core), but around
# the median, which the spike before moves less than it moves a mean.
WINDOW = 128  # latest good losses that a loss is compared with
ENOUGH = 64  # of them, before which only a loss that is not finite is a spike
DEVIATIONS = 6.0
TO_SIGMA = 1.4826  # times the median absolute deviation is the standard deviation of a normal distribution
LEAST_DEVIATION = 0.005  # of the median: where losses are nearly equal, rounding would be a spike
PATIENCE = 10  # steps left out in a row that end a run
SHOWN = 8  # samples in a line of the terminal


class LossWindow:
    """The latest good losses.

    Args:
        losses: to begin with.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self.losses = deque(losses, maxlen=WINDOW)

    def limit(self) -> float:
        """The largest loss that is no spike."""
        if len(self.losses) < ENOUGH:
            return math.inf
        middle = median(self.losses)
        deviation = TO_SIGMA * median(abs(loss - middle) for loss in self.losses)
        return middle + DEVIATIONS * max(deviation, LEAST_DEVIATION * middle)


class _Step(NamedTuple):
    """An optimizer step to be looked at later: its `step_sums`, the norm of its gradients, whether it was left out."""

    sums: tuple[Tensor, Tensor]
    grad_norm: Tensor | None
    left_out: bool


def scales_gradients(trainer: Any) -> bool:
    """Whether gradients in float16 are scaled up until they overflow; such a step is left out by design."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None or (
        str(trainer.precision).startswith("16") and isinstance(trainer.strategy, DeepSpeed)
    )


def _is_infinite(norm: Tensor | None) -> bool:
    return norm is not None and not math.isfinite(norm)


class Spikes(Callback):
    """Looks at the loss of each step: with `warn` when a row is logged, which costs no wait for the GPU, else at once.

    Args:
        run_dir: of the run, for the command that shows samples.
        on_spike: `warn`, `skip` the optimizer step, or skip it and `stop`.
    """

    def __init__(self, *, run_dir: Path, on_spike: Literal["warn", "skip", "stop"]) -> None:
        self.run_dir, self.on_spike = run_dir, on_spike
        self.window = LossWindow()
        self.skipped_steps = 0
        self.stopped: str | None = None  # why the run ends, if a spike ends it
        self._in_a_row = 0
        self._step = 0
        self._unseen: list[_Step] = []

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.on_spike != "warn":
            pl_module.accepts = lambda: self._accepts(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not new_step(trainer, self._step):
            return
        self._step = trainer.global_step
        if self.stopped:
            trainer.should_stop = True
        if self.on_spike == "warn":
            norm = None if scales_gradients(trainer) else task.grad_norm
            left_out = not scales_gradients(trainer) and step_was_left_out(task)
            self._unseen.append(_Step(task.step_sums(), norm, left_out))
            if is_log_step(trainer):
                self._look(trainer, task)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._look(trainer, pl_module)
        checkpoint["spikes"] = {
            "losses": list(self.window.losses),
            "skipped_steps": self.skipped_steps,
            "in_a_row": self._in_a_row,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["spikes"]
        self.window = LossWindow(state["losses"])
        self.skipped_steps, self._in_a_row = state["skipped_steps"], state["in_a_row"]

    def _look(self, trainer: Trainer, task: Any) -> None:
        """At the losses of all steps since it was called last."""
        if not self._unseen:
            return
        steps, self._unseen = self._unseen, []
        losses = task.mean_losses([step.sums for step in steps])
        for number, (step, loss) in enumerate(zip(steps, losses, strict=True), start=self._step - len(steps) + 1):
            spike = self._spike(loss, step.left_out or _is_infinite(step.grad_norm))
            self.skipped_steps += step.left_out
            if spike and self._in_a_row == 1:  # those that follow are mostly its consequence
                self._tell(trainer, number, spike + ", DeepSpeed leaves the optimizer step out" * step.left_out)

    def _accepts(self, trainer: Trainer, task: Any) -> bool:
        """Whether the optimizer may take the step whose gradients are there. All ranks see the same numbers."""
        overflow = False
        if not scales_gradients(trainer):
            task.grad_norm = clip_gradients(task, None)
            overflow = bool(gradients_overflow(task)) or _is_infinite(task.grad_norm)
        step, loss = trainer.global_step + 1, task.step_loss()
        spike = self._spike(loss, overflow)
        if spike is None:
            return True
        if not math.isfinite(loss) and (name := weight_not_finite(task)):
            raise UserError(BEYOND_HELP.format(kind="weights", name=name, step=step))
        self.skipped_steps += 1
        self._tell(trainer, step, f"{spike}, the optimizer step is left out")
        if self.on_spike == "stop":
            self.stopped = f"on_spike=stop at step {step}"
        elif self._in_a_row == PATIENCE:
            self.stopped = f"{PATIENCE} steps in a row left out by on_spike=skip, the last is {step}"
        if self.stopped:
            self._in_a_row = 0  # who resumes wants to go on
        return False

    def _spike(self, loss: float, overflow: bool) -> str | None:
        """What is wrong with a step, if anything; a good loss joins the window."""
        limit = self.window.limit()
        spike = None
        if not math.isfinite(loss):
            spike = f"loss {loss}"
        elif loss > limit:
            spike = f"loss {loss:.4f} (median {median(self.window.losses):.4f}, limit {limit:.4f})"
        elif overflow:
            spike = f"loss {loss:.4f} with a gradient that is not finite"
        if spike is None:
            self.window.losses.append(loss)
        self._in_a_row = self._in_a_row + 1 if spike else 0
        return spike

    def _tell(self, trainer: Any, step: int, spike: str) -> None:
        seen = samples_of_step(trainer.train_dataloader.order, step)
        found = [trainer.datamodule.locate(int(sample)) for sample in seen.samples]
        samples = [f"{name}:{number}" if name else str(number) for name, number in found]
        shown = " ".join(samples[:SHOWN]) + (f" and {len(samples) - SHOWN} more" if len(samples) > SHOWN else "")
        command = f"python -m txtrain audit {shlex.quote(str(self.run_dir))} {step}"
        log.warning("Spike at step %d: %s. Samples %s; to see them: %s", step, spike, shown, command)
        if len(samples) > SHOWN:
            log.info("Samples of step %d: %s", step, " ".join(samples), extra=LOG_ONLY)
