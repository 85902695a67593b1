"""`init_from`: start from trained weights, of an earlier run or a Hugging Face folder, as the same model."""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from txtrain.audio.spectrograms import Spectrograms, is_of_sound
from txtrain.compare.sweep import check_not_only_sweeps
from txtrain.config import newest_run, saved_config
from txtrain.data.images import see_as
from txtrain.data.pixels import FILE as PIXELS
from txtrain.data.pixels import Pixels
from txtrain.data.tokenizer_files import check_there
from txtrain.errors import UserError
from txtrain.interop import Imported, is_folder, read_folder
from txtrain.model.head import LABELLING
from txtrain.run_model import class_of, merged_config
from txtrain.saving import BEST, find_checkpoint
from txtrain.sizes import check_layers

# What makes the model that the weights belong to.
MODEL_GROUPS = ("model", "embedding", "head", "encoding", "norm", "attention", "ffn")


def same_model(composed: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """The composed config with the model and tokenizer that `init_from` names, under what the user typed."""
    path, result = _named(composed.init_from), composed.copy()
    result.init_from = str(path)
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    own_tokenizer = any(key.partition(".")[0] == "tokenizer" for key in keys)
    if (path / "config.yaml").is_file():
        axes, tokenizer, reads_text = _axes_of_run(path), path / "tokenizer.json", True
    elif is_folder(path):
        imported = read_folder(path)
        axes, tokenizer = OmegaConf.create(imported.axes), imported.path
        reads_text = imported.family.reads == "tokens"
        if reads_text and not own_tokenizer:
            own = ", or type tokenizer=pretrained tokenizer.path=FILE"
            check_there(tokenizer, f"init_from={tokenizer}", own)
    else:
        raise UserError(
            f"init_from={path} is no run directory (it has no config.yaml), and no Hugging Face folder (it has no "
            f"config.json): {_advice(composed.init_from)}"
        )
    for group in MODEL_GROUPS:
        if group != "head" or not _new_kind(composed.head, axes.head):
            result[group] = axes[group]
    if reads_text:
        pretrained = {"_target_": "txtrain.data.tokenizer.Pretrained", "path": str(tokenizer), "end_of_text": None}
        result.tokenizer = OmegaConf.create({**pretrained, "add_bos": True})
    seen = _input_of(path)
    if isinstance(seen, Pixels):
        see_as(result.data, seen, keys)
    elif seen is not None:
        seen.hear(result.data, keys, fixed="max_len" in axes.encoding)  # a table of positions is made for a length
    if own_tokenizer:
        result.model.vocab_size = None
    for key in keys:
        if key.partition(".")[0] in (*MODEL_GROUPS, "tokenizer"):
            OmegaConf.update(result, key, OmegaConf.select(composed, key), merge=False, force_add=True)
    return result


def _named(name: str) -> Path:
    """The run or folder of this name; a folder of runs means its newest run."""
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.yaml").is_file() and not is_folder(path):
        newest = newest_run(path)
        if newest is None:
            check_not_only_sweeps(path, key="init_from=")
        if newest and rank_zero_only.rank == 0:
            print(f"init_from={name}: its newest run is {newest.name}", file=sys.stderr)
        return newest or path
    return path


def _advice(name: str) -> str:
    """What to type instead of a name that nothing here has; one such as org/name is of the Hugging Face Hub."""
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).parent.exists():
        return (
            f"for this name on the Hugging Face Hub type hf download {name} --local-dir FOLDER, then init_from=FOLDER"
        )
    return "type init_from=runs/NAME/RUN or init_from=FOLDER"


def _input_of(path: Path) -> Pixels | Spectrograms | None:
    """How a trained model of images, in a run or a folder, sees them, or one of sound hears it."""
    if (path / "config.yaml").is_file():
        if (path / PIXELS).is_file():
            return Pixels.read(path)
        return Spectrograms.of_run(path) if is_of_sound(path) else None
    imported = read_folder(path)
    return None if imported.family.reads == "tokens" else seen_or_heard(imported)


def seen_or_heard(imported: Imported) -> Pixels | Spectrograms:
    """How images or sound become the input of a folder's model."""
    if imported.family.reads == "sound":
        return Spectrograms.of_folder(imported.path, **imported.family.sizes(imported.config))
    embedding = imported.axes["embedding"]
    height, width = embedding["image_size"]
    return Pixels.of_folder(imported.path, size=(height, width), channels=embedding["channels"])


def _axes_of_run(run: Path) -> DictConfig:
    check_layers(run, saved_config(run))
    saved = merged_config(run)
    if saved.encoding.get("max_len", 0) is None:
        saved.encoding.max_len = saved.data.get("seq_len")  # the table was made for it
    saved.model.max_len = max(saved.data.get("seq_len") or 0, saved.model.get("max_len") or 0) or None
    return saved


def _new_kind(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """Whether a task needs another kind of head than a trained model has, and one of its own labels."""
    kind = class_of(wanted, "head").scores
    return kind in LABELLING and kind != class_of(there, "head").scores


def find_trained(run: Path) -> Path:
    """The best checkpoint of a run, or its newest, by the name that it keeps; a folder is itself."""
    run = run.expanduser()
    if is_folder(run):
        return run.absolute()
    best = run / "checkpoints" / BEST
    path = best.resolve() if best.exists() else find_checkpoint(run)
    if path is None:
        raise UserError(f"init_from={run} has no checkpoint: name a run that has trained")
    return path.absolute()
