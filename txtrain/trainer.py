"""Lightning's Trainer, as a run needs it."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loops import _FitLoop
from lightning.pytorch.strategies import Strategy
from omegaconf import DictConfig, OmegaConf

from txtrain.callbacks import Summary, new_callbacks
from txtrain.errors import UserError
from txtrain.launch import find_launch

# Arguments of the Trainer that follow from other keys, and which.
OWNED = {
    "accumulate_grad_batches": "data.micro_batch_size",
    "strategy": "strategy",
    "logger": "logger",
    "callbacks": "callbacks, save and logger",
    "default_root_dir": "run_dir",
    "check_val_every_n_epoch": "trainer.val_check_interval",
    "use_distributed_sampler": "data",
    "gradient_clip_algorithm": "trainer.gradient_clip_val, which bounds the norm",
    "limit_train_batches": "trainer.max_steps",
    "overfit_batches": "data.path",
    "min_epochs": "trainer.max_epochs, which is when a run ends",
    "min_steps": "trainer.max_steps, which is when a run ends",
    "enable_checkpointing": "save.every",
    "enable_progress_bar": "the terminal",
    "enable_model_summary": "the start-up summary",
    "num_sanity_val_steps": "trainer.val_check_interval",
    "barebones": "trainer.log_every_n_steps and save.every",
    "plugins": "strategy and trainer.precision",
    "fast_dev_run": "trainer.max_steps and trainer.limit_val_batches",
}

log = logging.getLogger(__name__)


def check_numbers(config: DictConfig) -> None:
    """Refuses numbers that Lightning would take and fail on, or take to mean something else."""
    trainer = config.trainer
    if taken := OWNED.keys() & trainer.keys():
        key = min(taken)
        raise UserError(f"trainer.{key} follows from {OWNED[key]}: leave it out")
    if trainer.max_steps == -1 and trainer.max_epochs in (None, -1) and trainer.max_time is None:
        raise UserError("trainer.max_steps=-1 and no trainer.max_epochs train for ever: type trainer.max_epochs=1")
    for key, sample in (("log_every_n_steps", 10), ("val_check_interval", 100)):
        if not isinstance(trainer[key], int) or trainer[key] < 1:
            raise UserError(f"trainer.{key} is {trainer[key]}: give a number of steps, such as trainer.{key}={sample}")
    if trainer.gradient_clip_val is not None and trainer.gradient_clip_val < 0:
        raise UserError(
            f"trainer.gradient_clip_val is {trainer.gradient_clip_val}: "
            "set trainer.gradient_clip_val=1.0, or null for none"
        )
    if config.get("ema") and config.ema.decay:
        if config.lora.get("merge_every"):
            raise UserError(
                "ema.decay averages weights into which lora.merge_every merges adapters: leave out one of them"
            )
        if trainer.precision in ("bf16-true", "16-true"):
            raise UserError(
                f"ema.decay needs weights in float32, got trainer.precision={trainer.precision}: "
                "type trainer.precision=bf16-mixed"
            )
    for name, node in (config.get("callbacks") or {}).items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise UserError(f"callbacks.{name} is no callback: leave it out, or type callbacks=early_stopping")
    written = any(config.logger.get(kind) for kind in ("wandb", "tensorboard", "csv"))
    if "learning_rate_monitor" in (config.get("callbacks") or {}) and not written:
        raise UserError(
            "callbacks=learning_rate_monitor writes to a logger, and logger=none has none: type logger=tensorboard, or "
            "leave it out (metrics.jsonl has train/lr)"
        )
    if not trainer.limit_val_batches:
        unused = "callbacks=early_stopping" if "early_stopping" in (config.get("callbacks") or {}) else ""
        if config.save.best != "loss":
            unused = f"save.best={config.save.best}"
        if unused:
            raise UserError(
                f"{unused} needs validation, and trainer.limit_val_batches={trainer.limit_val_batches} leaves it out: "
                "type trainer.limit_val_batches=1.0"
            )
    if config.seed < 0:
        raise UserError(f"seed is {config.seed}: give 0 or more, such as seed={-config.seed}")
    warmup = config.schedule.get("warmup", 0)
    if isinstance(warmup, int) and 0 < trainer.max_steps < warmup:
        log.warning("schedule.warmup=%d is longer than trainer.max_steps=%d.", warmup, trainer.max_steps)


def new_trainer(
    config: DictConfig, parts: Mapping[str, Any], strategy: Strategy, run_dir: Path
) -> tuple[Trainer, Summary]:
    """The Trainer, and the callback that tells and keeps the outcome."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    others = (parts.get("callbacks") or {}).values()
    kept = {"save": parts["save"], "averaging": parts.get("ema"), "others": others}
    callbacks, summary = new_callbacks(run_dir=run_dir, config=plain, samples=parts["samples"], **kept)
    return lightning_trainer(parts["trainer"], strategy, callbacks=callbacks, default_root_dir=run_dir), summary


def lightning_trainer(new: Callable[..., Trainer], strategy: Strategy, **options: Any) -> Trainer:
    """A Trainer for our loaders and tasks, which says nothing by itself and writes nothing but by callbacks."""
    trainer = new(
        strategy=strategy,
        plugins=find_launch().environment(),
        max_time=None,  # `Budget` is in its place
        logger=False,  # set once there is a run directory
        check_val_every_n_epoch=None,  # intervals count steps, across epochs
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders share out samples by themselves
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    steps = trainer.fit_loop.epoch_loop
    trainer.fit_loop = FitLoop(trainer, min_epochs=trainer.min_epochs, max_epochs=trainer.max_epochs)
    trainer.fit_loop.epoch_loop = steps
    return trainer


class FitLoop(_FitLoop):
    """Lightning's, which begins and ends for callbacks also where no step is left: of a run that was killed between
    its last step and its end they make up for what is missing."""

    @property
    def skip(self) -> bool:
        return False


def divide_steps(trainer: Trainer, accumulation: int) -> None:
    """Tells a trainer how many micro-batches make a step, which follows from its number of devices.

    Intervals are in optimizer steps, which mean the same on any number of devices, and batches of validation are as
    large as a step. Lightning counts micro-batches.
    """
    trainer.accumulate_grad_batches = accumulation
    trainer.val_check_interval *= accumulation
    if isinstance(trainer.limit_val_batches, int):
        trainer.limit_val_batches *= accumulation
