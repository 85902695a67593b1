"""The train command, read from top to bottom: seed → data → model → run directory → task → callbacks → logger → fit."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from txtrain.callbacks import new_callbacks
from txtrain.errors import UserError
from txtrain.logger import close_loggers, setup_logging
from txtrain.model.lora import parameter_counts
from txtrain.run import RunDirectory
from txtrain.saving import find_checkpoint
from txtrain.start import trained_model
from txtrain.strategy import check_optimizer, choose_strategy, ending_processes
from txtrain.task.base import Task

MODEL_AXES = ("embedding", "head", "encoding", "norm", "attention", "ffn")

FROM_SCRATCH = (
    "lora.rank=%d with no init_from: layers with adapters keep their random weights frozen, all others train in full. "
    "To adapt a trained model, name its run: init_from=runs/NAME/RUN"
)

log = logging.getLogger(__name__)


def train(config: DictConfig, overrides: list[str]) -> float | None:
    """Trains what a checked config describes, and returns the validation loss.

    Args:
        config: composed and checked; on resume, the saved run's with the allowed overrides on top.
        overrides: what the user typed, written into the run directory.

    Raises:
        UserError: what was asked for cannot be; nothing has been written then.
    """
    rank = rank_zero_only.rank
    setup_logging(None, rank)
    strategy = new_strategy(config)
    new_model = model_function(config)
    check_model(config, new_model, vocab_size=256, max_len=config.data.seq_len)
    if config.init_from and not config.resume:
        new_model = partial(trained_model, new_model, Path(config.init_from))
    if config.lora.rank and not config.init_from:
        log.warning(FROM_SCRATCH, config.lora.rank)
    run = RunDirectory(config.run_dir) if config.run_dir else RunDirectory.default(config.name)
    run.check_writable()

    seed_everything(config.seed, verbose=False)
    data = build(config, "data")(tokenizer=build(config, "tokenizer"), seed=config.seed)
    data.prepare()
    sizes = {"vocab_size": data.tokenizer.vocab_size, "max_len": data.seq_len}
    if config.dry_run:
        return describe(config, check_model(config, model_function(config), **sizes), data)

    if rank == 0 and not config.resume:
        config.run_dir = str(run.path)
        run.create(OmegaConf.to_container(config, resolve=True), overrides, data.tokenizer)
    run.share_with_children()
    setup_logging(run.path, rank)
    task = new_task(config, partial(new_model, **sizes))
    trainer, finish = new_trainer(config, run.path, strategy, data)
    checkpoint = find_checkpoint(run.path) if config.resume else None
    with ending_processes(trainer), loggers_closing(trainer.loggers):
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
        return finish(trainer, task)["validation_loss"]


def build(config: DictConfig, group: str) -> Any:
    """The object, or the function that makes it, of one config group."""
    try:
        return instantiate(config[group], _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | UserError):
            raise UserError(str(error.__cause__)) from error
        raise


def new_strategy(config: DictConfig) -> Strategy | str:
    """The strategy for the devices that are asked for, if they are there and the optimizer can work so."""
    devices = {key: config.trainer[key] for key in ("accelerator", "devices", "num_nodes")}
    strategy = choose_strategy(build(config, "strategy"), **devices)
    check_optimizer(build(config, "optimizer"), strategy)
    return strategy


def model_function(config: DictConfig) -> Callable[..., nn.Module]:
    """Makes the task's model from `vocab_size` and `max_len`."""
    axes = {axis: build(config, axis) for axis in MODEL_AXES}
    return partial(build(config, "task").func.model_class, shape=build(config, "model"), **axes)


def check_model(config: DictConfig, new_model: Callable[..., nn.Module], **sizes: int) -> nn.Module:
    """The model without memory, so that an impossible combination is told before any data are read."""
    try:
        with torch.device("meta"):
            model = new_model(**sizes)
            build(config, "lora").apply(model, adapt_only=config.init_from is not None)
            build(config, "checkpointing").apply(model)
    except ValueError as error:
        raise UserError(str(error)) from error
    return model


def describe(config: DictConfig, model: nn.Module, data: LightningDataModule) -> None:
    """What a dry run tells."""
    total, trainable = parameter_counts(model)
    log.info("%s", OmegaConf.to_yaml(config, resolve=True))
    log.info("%d parameters, %d trainable; %d tokens to train on", total, trainable, data.train_tokens)
    log.info("dry run: the config is sound and nothing was written; leave out dry_run to train")


def new_task(config: DictConfig, build_model: Callable[[], nn.Module]) -> Task:
    """The LightningModule."""
    parts = {part: build(config, part) for part in ("lora", "checkpointing", "optimizer", "schedule", "loss")}
    return build(config, "task")(
        build_model=build_model,
        adapt_only=config.init_from is not None,
        compile_blocks=config.compile,
        seed=config.seed,
        **parts,
    )


def new_trainer(
    config: DictConfig, run_dir: Path, strategy: Strategy | str, data: LightningDataModule
) -> tuple[Trainer, Callable[..., dict[str, Any]]]:
    """Lightning's Trainer, and what to call at the end to tell and keep the outcome."""
    plain = OmegaConf.to_container(config, resolve=True)
    callbacks, summary = new_callbacks(run_dir=run_dir, config=plain, save=build(config, "save"))
    loggers = build(config, "logger")(
        run_dir=run_dir,
        name=config.name,
        config=plain,
        group=os.environ.get("TXTRAIN_SWEEP"),
        job=os.environ.get("TXTRAIN_JOB"),
    )
    trainer = build(config, "trainer")(
        strategy=strategy,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=run_dir,
        check_val_every_n_epoch=None,  # intervals count steps, across epochs
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders share out samples by themselves
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
    )
    # Both follow from the number of devices, which Lightning has just worked out. Intervals are in optimizer steps, so
    # that a run means the same on any number of devices; Lightning counts micro-batches.
    trainer.accumulate_grad_batches = data.accumulation(trainer.num_devices * trainer.num_nodes)
    trainer.val_check_interval = config.trainer.val_check_interval * trainer.accumulate_grad_batches
    return trainer, summary.finish


@contextmanager
def loggers_closing(loggers: list[Logger]) -> Iterator[None]:
    """Around all that a trainer does: what the loggers have open is ended, and how to send it is told last."""
    try:
        yield
    except BaseException:
        close_loggers(loggers, failed=True)
        raise
    close_loggers(loggers)
