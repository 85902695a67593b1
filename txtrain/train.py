"""The train command, read from top to bottom: parts → model → trainer → data → run directory → task → logger → fit."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from txtrain.callbacks.description import describe_memory, describe_run
from txtrain.config import instantiate, to_plain
from txtrain.data.base import Data
from txtrain.data.labels import class_weights
from txtrain.durations import as_typed, max_seconds
from txtrain.errors import UserError
from txtrain.interop.choice import EXPORTED, check_export, merged_axes
from txtrain.interop.export import export
from txtrain.logger import close_loggers, setup_logging
from txtrain.model.head import Loss
from txtrain.owner import releasing_runs
from txtrain.run import RunDirectory
from txtrain.run_model import parts_anew, with_trained
from txtrain.saving import checkpoint_step, read_state, resume_point
from txtrain.sizes import check_memory, made
from txtrain.start import find_trained
from txtrain.strategy import check_optimizer, choose_strategy, ending_processes
from txtrain.task.base import Task
from txtrain.trainer import check_numbers, divide_steps, new_trainer

FROM_SCRATCH = (
    "lora.rank=%d with no init_from: layers with adapters keep their random weights frozen, all others train in full. "
    "To adapt a trained model, name its run: init_from=runs/NAME/RUN"
)

STOPPED_BY_SPIKE, NOT_SAVED = 3, 4  # exit codes

log = logging.getLogger(__name__)


@releasing_runs
def train(config: DictConfig, overrides: list[str]) -> float | None:
    """Trains what a checked config describes, and returns the validation loss.

    Args:
        config: composed and checked; on resume, the saved run's with the allowed overrides on top.
        overrides: what the user typed, written into the run directory.

    Raises:
        UserError: what was asked for cannot be; nothing has been written then.
        SystemExit: a spike of the loss ended the run, in order, or its last step could not be saved.
    """
    rank = rank_zero_only.rank
    setup_logging(None, rank)
    with telling_mistakes():
        parts = {group: instantiate(node, group) for group, node in config.items() if OmegaConf.is_config(node)}
        check_numbers(config)
        strategy = new_strategy(config, parts)
        new_model = model_function(parts)
        data = parts["data"](tokenizer=parts["tokenizer"], seed=config.seed)
        check_content(parts["task"].func, data)
        parts["task"].func.check_settings(**parts["task"].keywords)
        check_prompt(config, parts["task"].func)
        check_class_weights(parts["loss"], parts["task"].func)
        model = check_model(config, parts, partial(new_model, **data.sizes()))
        run = RunDirectory(config.run_dir) if config.run_dir else RunDirectory.default(config.name)
        if rank == 0 and not config.resume:
            run.check_new()
        if config.get("export"):
            plain = to_plain(config)
            folder = run.path / EXPORTED
            check_export(type(model), merged_axes(plain, model), data.sizes().get("max_len"), folder)
        checkpoint = point_to_resume(config, run) if config.resume else None
        config.resume = config.resume if checkpoint else None
        trainer, summary = new_trainer(config, parts, strategy, run.path)

        seed_everything(config.seed, verbose=False)
        with summary.preparation:
            data.prepare()
        if data.sampling:
            data.train_order(data.samples("train"))  # refuses labels that it cannot balance
        parts["loss"].weights = data.class_weights = class_weights(
            parts["loss"].class_weights, data.label_counts, data.labels
        )
        if checkpoint:
            check_epochs_left(config, run, checkpoint, steps=data.steps_in_epoch)
        watch(trainer, measured(parts["task"].func, data))
        untrained = partial(new_model, **data.sizes())
        model = check_model(config, parts, untrained)
        trained = trained_checkpoint(config, checkpoint)
        begins = trained if config.lora.rank or not config.resume else None  # else the checkpoint has all weights
        build_model = with_trained(untrained, begins, data.labels) if begins else untrained
    origin = {"starts from": describe_origin(trained, model, data)} if trained else {}
    if config.dry_run:
        describe_dry(config, trainer, data, model, origin)
        return None
    summary.origin = origin
    divide_steps(trainer, data.accumulation(trainer.num_devices * trainer.num_nodes))
    if config.lora.rank and not config.init_from and not config.lora.get("merge_every"):
        log.warning(FROM_SCRATCH, config.lora.rank)

    open_run(run, config, overrides, data, rank)
    task = new_task(config, parts, build_model, trained)
    trainer.loggers = new_loggers(config, parts, run.path)
    with loggers_closing(trainer.loggers), ending_processes(trainer):
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
        checkpoints: Any = trainer.checkpoint_callback
        lost = checkpoints.lost(trainer)
        outcome = summary.finish(trainer, task, **({"state": "interrupted", "stopped": lost} if lost else {}))
    if lost and rank == 0:
        raise SystemExit(NOT_SAVED)
    if outcome["state"] == "stopped" and rank == 0:
        raise SystemExit(STOPPED_BY_SPIKE)
    if config.get("export") and rank == 0:
        export([str(run.path), str(run.path / EXPORTED)])
    return outcome["validation_loss"]


@contextmanager
def telling_mistakes() -> Iterator[None]:
    """Around what is made before anything is written: what a constructor refuses is the user's mistake."""
    try:
        yield
    except (ValueError, MisconfigurationException) as error:
        raise UserError(str(error)) from error


def new_strategy(config: DictConfig, parts: Mapping[str, Any]) -> Strategy:
    """The strategy for the devices that are asked for, if they are there and the optimizer can work so."""
    devices = {key: config.trainer[key] for key in ("accelerator", "devices", "num_nodes")}
    strategy = choose_strategy(parts["strategy"], **devices)
    check_optimizer(parts["optimizer"], strategy)
    return strategy


def model_function(parts: Mapping[str, Any]) -> Callable[..., nn.Module]:
    """Makes the task's model from the sizes that data give."""
    task = parts["task"].func
    return partial(task.model_class, shape=parts["model"], **{group: parts[group] for group in task.model_groups})


def check_content(task: type[Task], data: Data) -> None:
    """Refuses data that the task cannot read."""
    if data.content != task.content:
        raise UserError(
            f"the data are {data.content} ({type(data).__name__}) and the task reads {task.content} "
            f"({task.__name__}): choose another by data=NAME or task=NAME"
        )


def check_prompt(config: DictConfig, task: type[Task]) -> None:
    """Refuses a prompt that nobody would read."""
    if config.samples.get("prompt") is not None and not task.takes_prompt:
        raise UserError(
            f"samples.prompt is for tasks that write texts, and {task.__name__} does not: leave it out, its samples "
            "are those of the validation set"
        )


def check_class_weights(loss: Loss, task: type[Task]) -> None:
    """Refuses weights of labels where there are none."""
    if loss.class_weights is not None and not task.weighs_classes:
        raise UserError(
            f"loss.class_weights weighs labels, and {task.__name__} has none: leave it out, or choose a task that "
            "classifies"
        )


def check_model(config: DictConfig, parts: Mapping[str, Any], build_model: Callable[[], nn.Module]) -> nn.Module:
    """The model and its optimizer without memory: an impossible combination is told before any data are read."""
    with torch.device("meta"):
        model = made(build_model)
        parts["lora"].apply(model, adapt_only=config.init_from is not None)
        parts["lora"].quantise(model)
        parts["checkpointing"].apply(model)
        parts["optimizer"](model)
    if not config.dry_run:  # which may be of a model for another machine
        check_memory(model, config.trainer.precision)
    return model


def point_to_resume(config: DictConfig, run: RunDirectory) -> Path | None:
    """The newest whole checkpoint, if there is something left to do; None where the run never wrote one."""
    if rank_zero_only.rank == 0 and not config.dry_run:
        run.own()
    if run.starts_anew():
        log.warning("%s was ended before its first checkpoint: it starts anew with its own config.", run.path)
        return None
    checkpoint, last = resume_point(run.path, contents=rank_zero_only.rank == 0), config.trainer.max_steps
    step = checkpoint_step(checkpoint)
    if 0 < last <= step and run.finished_at(step):
        raise UserError(f"{run.path} is finished at step {step} of {last}: type trainer.max_steps={2 * step} to go on")
    budget, spent = max_seconds(config.trainer.max_time), read_state(checkpoint)["callbacks"].get("Budget", {})
    if budget and spent.get("spent", 0.0) >= budget and run.finished_at(step):
        raise UserError(
            f"{run.path} is finished at step {step}, trainer.max_time={config.trainer.max_time} is spent: type "
            f"trainer.max_time={as_typed(2 * budget)} to go on"
        )
    return checkpoint


def measured(task: type[Task], data: Data) -> list[str]:
    """The metrics that validation reports, of all and of each data set."""
    names = task.measured(data)
    sets = list(data.parts) if len(data.parts) > 1 else []
    return [*names, *(f"{part}/{name}" for part in sets for name in names)]


def watch(trainer: Any, names: list[str]) -> None:
    """Tells the callbacks that follow a metric which there are; a name that is none of them is refused."""
    for callback in trainer.callbacks:
        if hasattr(callback, "watch"):
            callback.watch(names)


def check_epochs_left(config: DictConfig, run: RunDirectory, checkpoint: Path, *, steps: int) -> None:
    """The same where the end is a number of epochs of so many steps."""
    step, epochs = checkpoint_step(checkpoint), config.trainer.max_epochs
    if epochs is not None and 0 < epochs * steps <= step and run.finished_at(step):
        raise UserError(
            f"{config.resume} is finished at step {step}, the end of trainer.max_epochs={epochs}: type "
            f"trainer.max_epochs={2 * epochs} to go on"
        )


def open_run(run: RunDirectory, config: DictConfig, overrides: list[str], data: Data, rank: int) -> None:
    """Writes down what is asked for, of a run that goes on only what is new; from here on train.log has all lines."""
    if rank == 0 and not config.resume:
        config.run_dir = str(run.path)
        run.create(OmegaConf.to_container(config, resolve=True), overrides, data)
    run.share()
    setup_logging(run.path, rank)
    if config.resume:
        run.check_data(data)
        if rank == 0:
            run.remember_end(config)


def describe_origin(trained: Path, model: nn.Module, data: Data) -> str:
    """The weights that a run starts from, and the parts of its model that they do not fill."""
    anew = parts_anew(model, trained, data.labels)
    parts = f"new {' and '.join(anew)}, all else is trained" if anew else "all of it is trained"
    return f"{trained} ({parts})"


def describe_dry(config: DictConfig, trainer: Trainer, data: Data, model: nn.Module, origin: Mapping[str, str]) -> None:
    """Prints the start-up summary of a run that is not started, with what is known of its memory and time."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    in_epoch, epochs, steps = data.steps_in_epoch, config.trainer.max_epochs, config.trainer.max_steps
    ends = [end for end in (steps, (epochs or -1) * in_epoch) if end > 0]
    lines = describe_run(
        config=plain,
        trainer=trainer,
        data=data,
        model=model,
        steps=min(ends, default=float("inf")),
        in_epoch=in_epoch,
        device=trainer.strategy.root_device.type,
    )
    lines["memory"] = describe_memory(model, plain, trainer.precision)
    lines["time"] = "not known before the first steps: trainer.max_steps=20 shows tokens/s"
    for name, text in {**origin, **lines}.items():
        log.info("%-13s  %s", name, text)
    log.info("dry run: the config is sound and nothing was written; leave out dry_run to train")


def trained_checkpoint(config: DictConfig, resumed: Path | None) -> Path | None:
    """The checkpoint that `init_from` means; a resumed run goes on with the one that its adapters began with."""
    if not config.init_from:
        return None
    base = read_state(resumed)["base"] if resumed else None
    return Path(base["path"]) if base else find_trained(Path(config.init_from))


def new_task(
    config: DictConfig, parts: Mapping[str, Any], build_model: Callable[[], nn.Module], trained: Path | None
) -> Task:
    """The LightningModule."""
    return parts["task"](
        build_model=build_model,
        trained=trained,
        compile_blocks=config.compile,
        seed=config.seed,
        **{part: parts[part] for part in ("lora", "checkpointing", "optimizer", "schedule", "loss")},
    )


def new_loggers(config: DictConfig, parts: Mapping[str, Any], run_dir: Path) -> list[Logger]:
    """The loggers; a job of a sweep is named after its overrides and grouped with the others."""
    return parts["logger"](
        run_dir=run_dir,
        name=config.name,
        config=OmegaConf.to_container(config, resolve=True),
        group=os.environ.get("TXTRAIN_SWEEP"),
        job=os.environ.get("TXTRAIN_JOB"),
    )


@contextmanager
def loggers_closing(loggers: list[Logger]) -> Iterator[None]:
    """Around all that a trainer does: what the loggers have open is ended, and how to send it is told last."""
    try:
        yield
    except BaseException:
        close_loggers(loggers, failed=True)
        raise
    close_loggers(loggers)
