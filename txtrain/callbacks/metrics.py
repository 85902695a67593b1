"""The numbers of a run: measured, written to metrics.jsonl, and handed to the loggers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from txtrain.callbacks.clock import Clock
from txtrain.callbacks.hardware import peak_flops, peak_memory
from txtrain.callbacks.rows import Rows
from txtrain.callbacks.steps import is_log_step, new_step
from txtrain.logger import begin_loggers


class Metrics(Callback):
    """One row at every logged optimizer step, and one at every validation.

    Between logged steps nothing asks the GPU for a number, so the CPU can run ahead of it.

    Args:
        run_dir: of the run; rows go to `metrics.jsonl` in it.
        clock: of training alone.
    """

    def __init__(self, *, run_dir: Path, clock: Clock) -> None:
        self.rows, self.clock = Rows(run_dir / "metrics.jsonl"), clock
        self.train: dict[str, float] = {}
        self.validation: dict[str, float] = {}
        self.before: dict[str, float] = {}  # validation before the first step
        self.unit = "tokens"  # of what the model reads
        self.warm: tuple[int, float] | None = None  # units read and seconds after the first step, which also compiles
        self.wandb_id: str | None = None
        self._step = 0
        self._rate = 0.0
        self._latest = (0, 0.0)
        self._peak_flops: float | None = None
        self._flops: float | Tensor = 0.0  # of this process since the row before

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        self._step, self.unit = trainer.global_step, task.unit
        if trainer.is_global_zero:
            self.rows.cut_back(self._step)
            rows = self.rows.read() if self._step else []
            self.wandb_id = begin_loggers(trainer.loggers, step=self._step, rows=rows, wandb_id=self.wandb_id)
        device_peak = peak_flops(task.device)
        self._peak_flops = device_peak * trainer.world_size if device_peak is not None else None
        self.clock.start()
        self._latest = (int(task.tokens_seen), self.clock.seconds)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]  # of this step: the schedule moves on at its end

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._peak_flops is not None:
            self._flops = self._flops + task.flops(batch)
        if not new_step(trainer, self._step):
            return
        self._step = trainer.global_step
        if self.warm is None:
            self.warm = (int(task.tokens_seen), self.clock.seconds)
        if is_log_step(trainer):
            self.train = self._measure(trainer, task)
            self._write(trainer, self.train)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.clock.stop()

    def on_validation_end(self, trainer: Trainer, task: Any) -> None:
        if trainer.sanity_checking:
            return
        self.validation = dict(task.validation)  # Lightning's own copy is rounded to float32
        if not trainer.global_step:
            self.before = self.validation
        self._write(trainer, self.validation)
        if trainer.state.fn == "fit":
            self.clock.start()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """What a run that goes on from here takes to be logged is on the disk before it."""
        if trainer.is_global_zero:
            self.rows.sync()
            for logger in trainer.loggers:
                logger.save()

    def state_dict(self) -> dict[str, Any]:
        measured = {"train": self.train, "validation": self.validation, "before": self.before}
        return measured | {"wandb_id": self.wandb_id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train, self.validation = state_dict["train"], state_dict["validation"]
        self.wandb_id, self.before = state_dict["wandb_id"], state_dict.get("before", {})

    def units_per_second(self) -> float | None:
        """Over all of training in this process but its first step, if it made more than one."""
        read, seconds = self._latest
        if self.warm is None or read == self.warm[0]:
            return self.train.get(f"train/{self.unit}_per_second")
        return (read - self.warm[0]) / max(seconds - self.warm[1], 1e-9)

    def _measure(self, trainer: Trainer, task: Any) -> dict[str, float]:
        loss = task.step_loss()  # waits for the GPU, so the clock below has seen all work done
        memory = torch.tensor(peak_memory(task.device), dtype=torch.int64, device=task.device)
        memory = trainer.strategy.reduce(memory, reduce_op="max")
        read, seconds = int(task.tokens_seen), self.clock.seconds
        elapsed = max(seconds - self._latest[1], 1e-9)
        speed = (read - self._latest[0]) / elapsed
        self._latest = (read, seconds)
        row = {"train/loss": loss, "train/lr": self._rate}
        if task.grad_norm is not None:
            row["train/grad_norm"] = float(task.grad_norm)
        row |= {
            f"train/{self.unit}_per_second": speed,
            "train/memory_bytes": int(memory),
            f"train/{self.unit}": read,
        }
        if self._peak_flops is not None:
            flops = torch.as_tensor(self._flops, dtype=torch.float32, device=task.device)
            flops = trainer.strategy.reduce(flops, reduce_op="sum")
            row["train/mfu"] = float(flops) / elapsed / self._peak_flops
            self._flops = 0.0
        return row

    def _when(self, trainer: Trainer) -> dict[str, float]:
        """Epochs done, and seconds since the run began with those before a resume."""
        in_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        epoch = {"epoch": round(trainer.global_step / in_epoch, 4)} if 0 < in_epoch < math.inf else {}
        return {**epoch, "seconds": round(self.clock.run_seconds, 3)}

    def _write(self, trainer: Trainer, row: dict[str, float]) -> None:
        step = trainer.global_step
        row = {**row, **self._when(trainer)}
        if trainer.is_global_zero:
            self.rows.append({"step": step, **without_nan(row)})
        for logger in trainer.loggers:
            logger.log_metrics(row, step=step)


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with null for NaN and infinity, which JSON does not have."""
    lost = {name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    return {name: None if name in lost else value for name, value in row.items()}
