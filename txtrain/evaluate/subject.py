"""What is evaluated, and on what: a trained model with the config and data that its run and the user say."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from txtrain.audio.spectrograms import Spectrograms
from txtrain.config import check, instantiate, saved_config, to_plain
from txtrain.data.base import Data
from txtrain.data.images import see_as
from txtrain.data.pixels import Pixels
from txtrain.data.tokenizer import Byte, Pretrained, Tokenizer
from txtrain.errors import UserError
from txtrain.launch import find_launch
from txtrain.mixtures import spread
from txtrain.model.transformer import TransformerStack
from txtrain.records import DataRecord, read_record
from txtrain.run_model import class_of
from txtrain.schema import arguments
from txtrain.task.classification import Classification
from txtrain.terminal import Phase
from txtrain.train import check_content
from txtrain.trained import Trained, load_trained

# What the user may type; all else would be another model, or does nothing here.
GROUPS = ("data", "trainer", "strategy", "compile")
OF_SOUND = ("features", "max_seconds", "fill")
BATCHES = ("batch_size", "micro_batch_size", "batch_seconds", "batch_tokens", "micro_batch_tokens")
# What other data take over from those of the run, so that numbers compare.
KEPT = ("seq_len", "packing", "masking", "vocabulary", "validation_fraction", *BATCHES, *OF_SOUND)
OF_TASK = ("masking",)  # a key that the task adds to the data

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that is ready to be evaluated.

    Args:
        name: as the user typed it.
        model: on the CPU.
        trained_len: the longest sequence in its training.
        config: of the whole evaluation.
        data: with its samples made.
        text: what part of which data that is, in words.
        run: the directory of its run, if it has one.
    """

    name: str
    model: nn.Module
    trained_len: int
    config: DictConfig
    data: Data
    text: str
    run: Path | None = None


def typed_keys(overrides: Sequence[str]) -> set[str]:
    """The keys of overrides, if all of them are for an evaluation."""
    typed = {override: override.partition("=")[0].lstrip("+~") for override in overrides}
    refused = [override for override, key in typed.items() if key.partition(".")[0] not in GROUPS]
    if refused:
        raise UserError(
            f"{refused[0]} is not for eval, which takes {', '.join(GROUPS)} and no other model: leave it out"
        )
    return set(typed.values())


def new_subject(name: str, composed: DictConfig, typed: set[str]) -> Subject:
    """Loads a model and makes the tokens of its text.

    Args:
        name: run, checkpoint or folder.
        composed: what the command line would make of a new run.
        typed: the keys that the user gave.

    Raises:
        UserError: there is no such model, or no such text, or they do not go together.
    """
    with Phase("loading the model") if find_launch().rank == 0 else nullcontext():
        trained = load_trained(name, dtype=torch.float32)
    run = trained.folder if (trained.folder / "config.yaml").is_file() else None
    config = composed.copy() if run is None else run_config(composed, saved_config(run), typed)
    named_data = bool(chosen_data(typed))
    if run is None:
        if not named_data:
            raise UserError(f"{name} has no data of its own: type data=text data.path=FILE")
        if trained.task is not None:
            config.task = {"_target_": f"{trained.task.__module__}.{trained.task.__name__}", "_partial_": True}
        if "data.seq_len" not in typed and "seq_len" in config.data:
            config.data.seq_len = min(config.data.seq_len, trained.max_len)
    task = class_of(config.task, "task")
    if not isinstance(trained.model, task.model_class):
        raise UserError(
            f"{name} is a {type(trained.model).__name__}, which {task.__name__} does not evaluate: name another model"
        )
    if issubclass(task, Classification) and (
        trained.problem_type not in (None, "single_label_classification") or len(trained.labels) == 1
    ):
        kind = trained.problem_type or "problem of one label"
        raise UserError(f"{name} is of a {kind}, and eval measures labels of which one is right: type txtrain predict")
    if isinstance(trained.inputs, Pixels):
        see_as(config.data, trained.inputs, typed)
    elif isinstance(trained.inputs, Spectrograms) and run is None:
        trained.inputs.hear(config.data, typed)
    shorten_batches(config.data, trained.max_len if run is None else saved_config(run).data.get("seq_len", 0), typed)
    spread(config)
    plain = to_plain(config)
    check(plain)
    data = own_data(config, run) if run else None
    if data is not None:
        text = "validation data of the run"
    else:
        data = new_data(config, fixed_tokenizer(trained))
        apart = {"data.validation_fraction", "data.validation_path"} & typed
        text = "validation data" if apart or not named_data else "all of the data"
        data.adopt(trained.labels)
        data.recall(trained.folder)
        if named_data and not apart:
            data.hold_out_all()
        if named_data and "trainer.limit_val_batches" not in typed:
            config.trainer.limit_val_batches = 1.0
        if not named_data:
            log.warning("%s: the data have changed since the run, so this is not the loss that it had.", name)
    check_content(task, data)
    data.prepare_evaluation()
    for told, what in data.left_out().items():
        log.info("%-14s %s", told, what)
    known = {"name": name, "model": trained.model, "trained_len": trained.max_len, "run": run}
    return Subject(config=config, data=data, text=text, **known)


def run_config(composed: DictConfig, saved: DictConfig, typed: set[str]) -> DictConfig:
    """The composed config with the task, data and precision of a run, under what the user typed."""
    config = composed.copy()
    config.task, config.seed = saved.task, saved.seed
    if "data" in typed:
        for key in KEPT:
            if f"data.{key}" not in typed and key in saved.data and (key in config.data or key in OF_TASK):
                OmegaConf.update(config.data, key, saved.data[key], force_add=True)
    else:
        config.data = saved.data
        if "data.path" in typed and "validation_path" in config.data:
            config.data.validation_path = None
        for path in typed:
            if path.startswith("data."):
                OmegaConf.update(config, path, OmegaConf.select(composed, path), merge=False, force_add=True)
    for key in ("precision", "limit_val_batches"):
        if f"trainer.{key}" not in typed:
            config.trainer[key] = saved.trainer[key]
    return config


def chosen_data(typed: set[str]) -> set[str]:
    """The keys among those that were typed that say which text it is, not how it is cut into windows."""
    cutting = {f"data.{key}" for key in (*KEPT, *arguments(Data)[0])}
    return {key for key in typed if key.partition(".")[0] == "data"} - cutting


def shorten_batches(data: DictConfig, trained_len: int, typed: set[str]) -> None:
    """Longer windows than in training go through in smaller micro-batches, of as many tokens; no number changes."""
    if "batch_size" in data and data.get("seq_len", 0) > trained_len > 0 and "data.micro_batch_size" not in typed:
        windows = data.micro_batch_size or data.batch_size
        data.micro_batch_size = max(1, windows * trained_len // data.seq_len)


def new_data(config: DictConfig, tokenizer: Any) -> Data:
    return instantiate(config.data, "data")(tokenizer=tokenizer, seed=config.seed)


def own_data(config: DictConfig, run: Path) -> Data | None:
    """The data as the run had them, if these are the same text, split and tokenizer; then its tokens serve again."""
    try:
        began = read_record(run / "data.json", DataRecord).fingerprint
        data = new_data(config, instantiate(saved_config(run).tokenizer, "tokenizer"))
        return data if data.fingerprint() == began else None
    except (OSError, UserError):  # the data or a tokenizer's file are gone, which matters only if they are asked for
        return None


def fixed_tokenizer(trained: Trained) -> Tokenizer:
    """The model's tokenizer as one that learns nothing from another text; of a model of other things any."""
    if not isinstance(trained.inputs, Tokenizer):
        return Byte()
    tokenizer = trained.tokenizer
    end = tokenizer.core.id_to_token(tokenizer.end_of_text)
    return Pretrained(path=str(trained.folder), end_of_text=end, add_bos=tokenizer.add_bos)


def sample_length(data: Data) -> int | None:
    """Tokens in a sample, at most; None if it has no tokens."""
    lengths = [getattr(part, "seq_len", None) for part in data.parts.values()]
    return max((length for length in lengths if length is not None), default=None)


def check_length(subject: Subject) -> str | None:
    """Why a model cannot read samples so long, if that is so: its encoding may end where training did."""
    length = sample_length(subject.data)
    if length is None:
        return None
    for stack in (module for module in subject.model.modules() if isinstance(module, TransformerStack)):
        x = torch.zeros(1, 1, stack.encoding.stack.dim)
        try:
            with torch.no_grad():
                stack.encoding.embed(x, torch.tensor([[length - 1]]))
        except ValueError as error:
            return f"{subject.name} cannot read data.seq_len={length}: {error}"
    return None
