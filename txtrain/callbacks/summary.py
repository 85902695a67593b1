"""What a run is, told at its start, and what came of it, told at its end and written to summary.json."""

import json
import logging
import os
import shlex
import sys
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any

from lightning import Callback, LightningModule, Trainer

from txtrain import trust
from txtrain.callbacks.budget import Budget
from txtrain.callbacks.description import describe_run
from txtrain.callbacks.early_stopping import EarlyStopping
from txtrain.callbacks.metrics import Metrics, without_nan
from txtrain.callbacks.preparation import Preparation
from txtrain.callbacks.samples import Samples
from txtrain.callbacks.spikes import Spikes
from txtrain.durations import as_typed
from txtrain.logger import RESULT
from txtrain.model.lora import parameter_counts
from txtrain.optim import HalfOptimizer
from txtrain.printable import duration, printable, short
from txtrain.saving import BEST, LAST, PARTIAL, remove
from txtrain.signals import Interrupted
from txtrain.strategy import is_lost

log = logging.getLogger(__name__)

LOWEST = 12  # classes whose recall is told
COLUMN = 36  # characters of a text beside another


class Summary(Callback):
    """A few lines before the first step and after the last.

    Args:
        run_dir: of the run; the outcome goes to `summary.json` in it.
        config: the run's, plain.
        metrics: where the numbers come from.
        samples: where the text comes from.
        spikes: what may have left steps out, or ended the run.
    """

    def __init__(
        self, *, run_dir: Path, config: Mapping[str, Any], metrics: Metrics, samples: Samples, spikes: Spikes
    ) -> None:
        self.run_dir, self.config, self.metrics, self.samples, self.spikes = run_dir, config, metrics, samples, spikes
        self.preparation = Preparation(metrics.clock)
        self.origin: dict[str, str] = {}  # lines about where the weights come from, printed first

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            for name, text in self.describe(trainer, pl_module).items():
                log.info("%-13s  %s", name, text)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt | SystemExit):
            reason = str(exception) if isinstance(exception, Interrupted) else "interrupted"
            self.finish(trainer, pl_module, state="interrupted", stopped=reason)
        else:
            reason = "another process ended" if is_lost(exception) else f"{type(exception).__name__}: {exception}"
            self.finish(trainer, pl_module, state="failed", stopped=reason.splitlines()[0])

    def state_dict(self) -> dict[str, Any]:
        return {"wall_seconds": self.metrics.clock.run_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.metrics.clock.seconds_before = state_dict["wall_seconds"]

    def describe(self, trainer: Any, task: Any) -> dict[str, str]:
        """The run in words, by line."""
        steps, accumulation = trainer.estimated_stepping_batches, trainer.accumulate_grad_batches
        lines = describe_run(
            config=self.config,
            trainer=trainer,
            data=trainer.datamodule,
            model=task.model,
            steps=steps,
            in_epoch=trainer.num_training_batches / accumulation,
            device=task.device.type,
        )
        if trainer.global_step:
            lines["steps"] += f", going on from step {trainer.global_step}"
        return (
            self.origin
            | lines
            | {
                "optimizer": optimizer_name(trainer.optimizers[0]),
                "run directory": str(self.run_dir),
                "logger": ", ".join(logger_name(logger) for logger in trainer.loggers) or "none",
            }
        )

    def finish(
        self, trainer: Trainer, task: Any, *, state: str = "finished", stopped: str | None = None
    ) -> dict[str, Any]:
        """Tells and writes what came of the run, and returns it."""
        if state == "finished" and self.spikes.stopped:
            state, stopped = "stopped", self.spikes.stopped
        outcome = self.outcome(trainer, task) | {"state": state, "stopped": stopped or why_stopped(trainer)}
        if trainer.is_global_zero:
            write_json(self.run_dir / "summary.json", outcome)
            self._tell(outcome, longer(trainer) if outcome["state"] == "finished" else None)
        return outcome

    def outcome(self, trainer: Trainer, task: Any) -> dict[str, Any]:
        train, unit, prepared = self.metrics.train, self.metrics.unit, self.preparation.seconds
        validation = {name.removeprefix("validation/"): value for name, value in self.metrics.validation.items()}
        total, trainable = parameter_counts(task.model) if task.model is not None else (None, None)
        return {
            "validation_loss": validation.pop("loss", None),
            **validation,
            "best": best_of(trainer),
            "train_loss": train.get("train/loss"),
            "steps": trainer.global_step,
            "skipped_steps": self.spikes.skipped_steps,
            unit: int(task.tokens_seen),
            f"{unit}_per_second": self.metrics.units_per_second(),
            "peak_memory_bytes": train.get("train/memory_bytes"),
            "parameters": total,
            "trainable_parameters": trainable,
            "wall_seconds": round(self.metrics.clock.run_seconds, 3),
            "before": {name.removeprefix("validation/"): value for name, value in self.metrics.before.items()} or None,
            "preparation_peak_memory_bytes": self.preparation.peak_memory,
            "preparation_seconds": None if prepared is None else round(prepared, 3),
            "sample_before": self.samples.text_before,
            "sample": self.samples.text,
            **task.report(),
        }

    def _tell(self, outcome: Mapping[str, Any], longer: str | None) -> None:
        numbers, steps = {name: value for name, value in outcome.items() if value is not None}, outcome["steps"]
        before = {name if name != "loss" else "validation_loss": was for name, was in (outcome["before"] or {}).items()}
        told = {
            name: f"{number:.4f}" + (f"  (before {before[name]:.4f})" if name in before else "")
            for name, number in numbers.items()
            if name in self._measures()
        }
        told |= {name: f"{numbers[name]:,}" for name in ("parameters", "trainable_parameters") if name in numbers}
        speed = f"{self.metrics.unit}_per_second"
        if speed in numbers:
            told[speed] = short(numbers[speed])
        if "peak_memory_bytes" in numbers:
            told["peak_memory"] = (
                f"{numbers['peak_memory_bytes'] / 2**20:,.0f} MiB{_beside(numbers, 'peak_memory_bytes')}"
            )
        if "best" in numbers:
            best = numbers["best"]
            told["best"] = f"{best['metric']} {best['value']:.4f} at step {best['step']}"
        taken = f"{duration(outcome['wall_seconds'])} for {steps} step{'s' * (steps != 1)}"
        told["time"] = taken + _beside(numbers, "seconds")
        if "recall_by_label" in outcome:
            lowest = sorted(outcome["recall_by_label"].items(), key=lambda item: item[1])[:LOWEST]
            told["recall, lowest first"] = ", ".join(f"{label} {share:.1%}" for label, share in lowest)
        told[outcome["state"]] = outcome["stopped"]
        told |= {name: text.replace("\n", "\n" + " " * 22) for name, text in self._told_samples(outcome).items()}
        if (self.config.get("trainer") or {}).get("profiler"):
            told["profile"] = f"at the end of {self.run_dir / 'train.log'}"
        told |= self._what_next(longer)
        result = {*self._measures(), outcome["state"]} if outcome["state"] == "finished" else set()
        for name, text in told.items():
            log.info("%-20s  %s", name.replace("_", " "), text, extra=RESULT if name in result else None)

    def _told_samples(self, outcome: Mapping[str, Any]) -> dict[str, str]:
        """The latest sample; beside that from before the first step, if there is one, of the same prompt."""
        if not outcome["sample"] or not outcome["sample_before"]:
            return {"sample": printable(outcome["sample"])} if outcome["sample"] else {}
        (_, prompt, before), (_, again, after) = self.samples.rows[0], self.samples.rows[-1]
        if prompt != again:
            return {name: printable(outcome[name]) for name in ("sample_before", "sample")}
        return {"sample": printable(prompt), "sample_before": side_by_side(printable(before), printable(after))}

    def _measures(self) -> set[str]:
        """Numbers of the outcome that say how good the model is."""
        return {name.replace("/", "_") for name in ("validation/loss", "train/loss")} | {
            name.removeprefix("validation/") for name in self.metrics.validation
        }

    def _what_next(self, longer: str | None) -> dict[str, str]:
        folder = self.run_dir / "checkpoints"
        if not (folder / LAST).exists():
            return {}
        found = [str(folder / name) for name in (LAST, BEST) if (folder / name).exists()]
        return {"checkpoints": ", ".join(found), "go on": command_to_go_on(self.run_dir, longer)}


def best_of(trainer: Any) -> dict[str, Any] | None:
    """The metric of `save.best`, its best value and the step of that checkpoint, if there is one."""
    checkpoints = trainer.checkpoint_callback
    if getattr(checkpoints, "best_step", None) is None:
        return None
    value = checkpoints.sign * checkpoints.best
    return {"metric": checkpoints.metric.removeprefix("validation/"), "value": value, "step": checkpoints.best_step}


def side_by_side(before: str, after: str) -> str:
    """Two texts in columns."""
    columns = [[part for line in text.split("\n") for part in wrap(line, COLUMN) or [""]] for text in (before, after)]
    rows = enumerate(zip_longest(*columns, fillvalue=""))
    return "\n".join(
        f"{one:<{COLUMN}} | {'      ' if row else 'after '} {other}".rstrip() for row, (one, other) in rows
    )


def _beside(numbers: Mapping[str, Any], name: str) -> str:
    """What preparing the data took, beside what training took."""
    taken = numbers.get(f"preparation_{name}")
    if taken is None:
        return ""
    return f"; preparing the data {f'{taken / 2**20:,.0f} MiB' if 'memory' in name else duration(taken)}"


def command_to_go_on(run_dir: Path, longer: str | None = None) -> str:
    command = "python train.py" if sys.argv[0].endswith("train.py") else "txtrain train"
    return f"{command} resume={shlex.quote(str(run_dir))}" + "".join(f" {word}" for word in (longer, *_trust()) if word)


def _trust() -> list[str]:
    """What this command trusts, which the next one does not remember."""
    return [shlex.quote(override) for override in trust.as_typed()]


def longer(trainer: Any) -> str | None:
    """The override with which a run that has come to its end goes on, if it needs one."""
    for end, reached in (("max_steps", trainer.global_step), ("max_epochs", trainer.current_epoch)):
        last = getattr(trainer, end)
        if last is not None and 0 < last <= reached:
            return f"trainer.{end}={2 * reached}"
    budget = spent_budget(trainer)
    return None if budget is None else f"trainer.max_time={as_typed(2 * budget)}"


def spent_budget(trainer: Any) -> float | None:
    """Seconds of `trainer.max_time` if they are spent."""
    budgets = [callback for callback in trainer.callbacks if isinstance(callback, Budget)]
    return next((budget.seconds for budget in budgets if budget.left == 0), None)


def optimizer_name(optimizer: Any) -> str:
    """The class that runs, which a strategy may have chosen for its devices."""
    inner = getattr(optimizer, "optimizer", optimizer)  # DeepSpeed's own is around it
    fused = all(group.get("fused") for group in inner.param_groups)
    cost = f"; {optimizer.describe()}" if isinstance(optimizer, HalfOptimizer) else ""
    return type(inner).__name__ + ", fused" * fused + cost


def why_stopped(trainer: Any) -> str:
    if 0 <= trainer.max_steps <= trainer.global_step:
        return f"trainer.max_steps={trainer.max_steps} reached"
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
        return f"trainer.max_epochs={trainer.max_epochs} reached"
    if (budget := spent_budget(trainer)) is not None:
        return f"trainer.max_time={as_typed(budget)} reached"
    reasons = [callback.why for callback in trainer.callbacks if isinstance(callback, EarlyStopping) and callback.why]
    return reasons[0] if reasons else "a callback asked to stop"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + PARTIAL)
    text = json.dumps(without_nan(content), indent=2, ensure_ascii=False) + "\n"
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:  # the run is over, and well
        log.warning("%s cannot be written (%s).", path, error.strerror)
        remove(partial)


def logger_name(logger: Any) -> str:
    """The option that it is, as one types it."""
    return logger.describe() if hasattr(logger, "describe") else type(logger).__name__.removesuffix("Logger").lower()
