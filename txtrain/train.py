"""The train command, read from top to bottom: seed → data → model → run directory → task → callbacks → logger → fit."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import LightningDataModule, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

from txtrain import strategy
from txtrain.errors import UserError
from txtrain.run import RunDirectory
from txtrain.task.base import Task

MODEL_AXES = ("embedding", "head", "encoding", "norm", "attention", "ffn")


def train(config: DictConfig, overrides: list[str]) -> float:
    """Trains what a checked config describes, and returns the validation loss.

    Args:
        config: composed and checked; on resume, the saved run's with the allowed overrides on top.
        overrides: what the user typed, written into the run directory.

    Raises:
        UserError: what was asked for cannot be; nothing has been written then.
    """
    strategy.check_devices(config.trainer.accelerator, config.trainer.devices, config.strategy)
    new_model = partial(build(config, "task").func.model_class, shape=build(config, "model"), **model_axes(config))
    check_model(config, new_model)

    seed_everything(config.seed, verbose=False)
    data = build(config, "data")(tokenizer=build(config, "tokenizer"), seed=config.seed)
    data.prepare()

    run = RunDirectory.of_config(config)
    run.create(OmegaConf.to_container(config, resolve=True), overrides)
    task = new_task(config, partial(new_model, vocab_size=data.tokenizer.vocab_size, max_len=data.seq_len))
    trainer = new_trainer(config, data, run)
    trainer.fit(task, datamodule=data, ckpt_path=run.checkpoint() if config.resume else None)
    return task.validation["validation/loss"]


def build(config: DictConfig, group: str) -> Any:
    """The object, or the function that makes it, of one config group."""
    try:
        return instantiate(config[group], _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise UserError(str(error.__cause__)) from error
        raise


def model_axes(config: DictConfig) -> dict[str, Callable[..., nn.Module]]:
    """What makes each part of the model."""
    return {axis: build(config, axis) for axis in MODEL_AXES}


def check_model(config: DictConfig, new_model: Callable[..., nn.Module]) -> None:
    """Builds the model without memory, so that an impossible combination is told before any data are read."""
    try:
        with torch.device("meta"):
            model = new_model(vocab_size=256, max_len=config.data.seq_len)
            build(config, "lora").apply(model)
            build(config, "checkpointing").apply(model)
    except ValueError as error:
        raise UserError(str(error)) from error


def new_task(config: DictConfig, build_model: Callable[[], nn.Module]) -> Task:
    """The LightningModule."""
    return build(config, "task")(
        build_model=build_model,
        lora=build(config, "lora"),
        checkpointing=build(config, "checkpointing"),
        optimizer=build(config, "optimizer"),
        schedule=build(config, "schedule"),
        loss=build(config, "loss"),
        adapt_only=config.init_from is not None,
        compile_blocks=config.compile,
        seed=config.seed,
    )
