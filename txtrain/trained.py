"""A trained model and its tokenizer, from a run, one of its checkpoints or a Hugging Face folder, ready to be used."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from txtrain.audio.spectrograms import Spectrograms
from txtrain.compare.sweep import check_not_only_sweeps
from txtrain.config import check, instantiate, newest_run, to_plain
from txtrain.data import marian
from txtrain.data.memory import FILE as MEMORY
from txtrain.data.memory import Memory
from txtrain.data.pixels import Pixels
from txtrain.data.special import barred_ids, named_ids
from txtrain.data.tokenizer import TARGET_FILE, Pretrained, Tokenizer
from txtrain.data.tokenizer_files import check_there, find_file
from txtrain.errors import UserError
from txtrain.interop import Imported, read_folder
from txtrain.interop.family import Family
from txtrain.interop.peft_config import is_adapter
from txtrain.launch import find_launch
from txtrain.model import EncoderDecoder, EncoderWithHead
from txtrain.model.finite import first_not_finite
from txtrain.run_model import (
    class_of,
    labels_of_run,
    merged_config,
    model_of_run,
    sizes_of_run,
    trained_weights,
    with_weights,
)
from txtrain.saving import BEST, find_checkpoint
from txtrain.start import seen_or_heard

if TYPE_CHECKING:
    from txtrain.task.base import Task


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model in evaluation mode, without adapters (they are merged) and without gradients.

    Args:
        model: on the device, in the type that was asked for.
        inputs: what makes its input as it was in training: the tokenizer of text, `Pixels` of images, or
            `Spectrograms` of labelled sound.
        max_len: the longest sequence that it was trained on, or what it began as.
        axes: the config node of each group that makes the model.
        folder: where the tokenizer's files are.
        end_tokens: any of these ends a text.
        begin: what the decoder of an encoder-decoder begins with.
        barred: tokens that are never written.
        target_tokenizer: of what an encoder-decoder writes, if it is another one.
        memory: how texts are read that are to be translated, if not as they are.
        labels: names of those that its head scores, if it scores labels.
        problem_type: what its scores of labels mean, if its folder says so: `regression`, `multi_label_classification`.
        task: what it was trained for, if that is known.
        family: that of the Hugging Face folder that it came from.
    """

    model: nn.Module
    inputs: Tokenizer | Pixels | Spectrograms
    max_len: int
    axes: dict[str, dict[str, Any]]
    folder: Path
    end_tokens: frozenset[int] = frozenset()
    begin: tuple[int, ...] = ()
    barred: tuple[int, ...] = ()
    target_tokenizer: Tokenizer | None = None
    memory: Memory | None = None
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    task: "type[Task] | None" = None
    family: Family | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that it was trained with.

        Raises:
            UserError: it reads no text.
        """
        if not isinstance(self.inputs, Tokenizer):
            read = "images" if isinstance(self.inputs, Pixels) else "sound"
            raise UserError(f"{self.folder} reads {read}, and this is for text: name a model that reads text")
        return self.inputs

    def asked(self, text: str) -> str:
        """A text as the model reads it."""
        return self.memory.asked(text) if self.memory else text

    @property
    def written(self) -> Tokenizer:
        """The tokenizer of what it writes."""
        return self.target_tokenizer or self.tokenizer


def load_trained(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Trained:
    """The model in a run directory (its best checkpoint, else its newest), a checkpoint or a Hugging Face folder.

    A folder of runs, such as runs/gpt, means the newest of them, which is told on standard error. Checkpoints of every
    strategy are alike, and adapters are merged.

    Args:
        path: the folder.
        device: to put the model on.
        dtype: of the weights.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"{path} {'is a file' if path.exists() else 'does not exist'}: {CHOICES}")
    if (path / "config.json").is_file() or is_adapter(path):
        trained = _from_folder(path)
    elif checkpoint := find_checkpoint_of(path):
        trained = _from_checkpoint(checkpoint)
    else:
        raise UserError(f"{path} has neither config.yaml nor config.json: {CHOICES}")
    trained.model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    if name := first_not_finite(trained.model.named_parameters()):
        # What was read is finite, so merging adapters or the type has made it so.
        kind = str(dtype).removeprefix("torch.")
        raise UserError(f"{path}: {name} is not finite in {kind}: use float32, or another checkpoint")
    return trained


CHOICES = "name a run (runs/NAME/RUN), one of its checkpoints (RUN/checkpoints/best) or a Hugging Face model's folder"


def find_checkpoint_of(path: Path) -> Path | None:
    """The checkpoint that a run directory, a checkpoint or a folder of runs means; None if it is none of them."""
    if (path / "config.yaml").is_file():
        return find_best(path)
    if (path.resolve().parent.parent / "config.yaml").is_file():
        return path.resolve()
    newest = newest_run(path)
    if newest is None:
        check_not_only_sweeps(path)
        return None
    if find_launch().rank == 0:
        print(f"{path}: its newest run is {newest.name}", file=sys.stderr)
    return find_best(newest)


def find_best(run: Path) -> Path:
    """The best checkpoint of a run, or its newest."""
    best = run / "checkpoints" / BEST
    path = best.resolve() if best.exists() else find_checkpoint(run)
    if path is None:
        raise UserError(f"{run} has no checkpoint: name a run that has trained")
    return path


def _from_checkpoint(checkpoint: Path) -> Trained:
    run = checkpoint.parent.parent
    merged, labels = merged_config(run), labels_of_run(run)
    build_model = model_of_run(run, merged)
    model = with_weights(build_model, trained_weights(build_model, checkpoint, labels))
    config = to_plain(merged)
    task = class_of(config["task"], "task")
    check({"tokenizer": config["tokenizer"]})
    reader = class_of(config["data"], "data").reader(run, instantiate(config["tokenizer"], "tokenizer"))
    return Trained(
        model=model,
        inputs=reader,
        max_len=max(sizes_of_run(run).get("max_len", 0), config["model"].get("max_len") or 0),
        axes={group: config[group] for group in ("model", *task.model_groups)},
        folder=run,
        target_tokenizer=_target_tokenizer(run),
        memory=_memory(run, config["data"]),
        labels=tuple(labels),
        task=task,
        **{"end_tokens": _end_tokens(reader), **_decoder_tokens(run)},
    )


def _target_tokenizer(folder: Path) -> Tokenizer | None:
    """Of what the decoder writes, where it has one of its own."""
    file = folder / (marian.TARGET if marian.has_files(folder) else TARGET_FILE)
    if not file.is_file():
        return None
    tokenizer = Pretrained(path=str(file))
    tokenizer.fit()
    return tokenizer


def _memory(run: Path, data: dict[str, Any]) -> Memory | None:
    """How a run's texts are read, where that is not as they are."""
    memory = Memory.load(run)
    if memory is None and (data.get("memory") or data.get("also")):
        raise UserError(f"{run / MEMORY} is not there: restore it, since the model reads translations out of it")
    return memory


def _decoder_tokens(folder: Path) -> dict[str, Any]:
    """What a folder names that begins a text, is never in it, and ends it."""
    named = named_ids(folder)
    begin = (*named["decoder_start_token_id"], *named["forced_bos_token_id"])
    found: dict[str, Any] = {"begin": begin, "barred": tuple(barred_ids(folder))}
    return found | ({"end_tokens": frozenset(named["eos_token_id"])} if named["eos_token_id"] else {})


def _end_tokens(reader: Any) -> frozenset[int]:
    return frozenset({reader.end_of_text}) if isinstance(reader, Tokenizer) else frozenset()


def _from_folder(folder: Path) -> Trained:
    imported = read_folder(folder)
    parts = {group: instantiate(node, group) for group, node in imported.axes.items()}
    shape = parts.pop("model")
    build_model = partial(imported.family.model_class, shape=shape, **imported.sizes, **parts)
    if not find_file(folder).is_file():
        folder = imported.path  # of the base, if it is an adapter's folder
    if imported.family.reads == "tokens":
        reading = _text_of(imported, folder)
    else:
        reading = {"inputs": seen_or_heard(imported)}
    return Trained(
        model=imported.build(build_model),
        max_len=imported.max_len,
        axes=imported.axes,
        folder=folder,
        labels=imported.labels,
        problem_type=imported.problem_type,
        task=_task_of(imported),
        family=imported.family,
        **reading,
    )


def _task_of(imported: Imported) -> "type[Task] | None":
    """What a folder's model does, where its head says so."""
    if imported.family.model_class is EncoderDecoder:
        from txtrain.task.translation import Translation

        return Translation
    if imported.family.reads == "images":
        from txtrain.task.image_classification import ImageClassification

        return ImageClassification if imported.labels else None
    if imported.family.reads == "sound":
        from txtrain.task.audio_classification import AudioClassification

        return AudioClassification if imported.labels else None
    if imported.family.model_class is not EncoderWithHead:
        return None
    from txtrain.task.masked_lm import MaskedLM
    from txtrain.task.sequence_classification import SequenceClassification
    from txtrain.task.token_classification import TokenClassification

    by_head = {"tokens": MaskedLM, "labels": SequenceClassification, "labels of tokens": TokenClassification}
    return by_head.get(class_of(imported.axes["head"], "head").scores)


def _text_of(imported: Imported, folder: Path) -> dict[str, Any]:
    """Its tokenizer, which is in this folder, and the tokens that begin and end a text."""
    vocab_size = imported.sizes["vocab_size"]
    check_there(folder, str(folder))
    tokenizer = Pretrained(path=str(folder), add_bos=True)
    tokenizer.fit()
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{folder} has a tokenizer of {tokenizer.vocab_size} tokens for a model of {vocab_size}: "
            "restore the one that it was trained with"
        )
    ends = {"end_tokens": frozenset({tokenizer.end_of_text})}
    reading = {"inputs": tokenizer, "target_tokenizer": _target_tokenizer(imported.path)}
    return reading | ends | _decoder_tokens(imported.path)
