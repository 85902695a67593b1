"""What an exported folder has beside weights: how the model's input is made, the names of its labels."""

import json
import shutil
from collections.abc import Set
from pathlib import Path
from typing import Any

from torch import nn

from txtrain.audio.spectrograms import Spectrograms
from txtrain.data import pixels
from txtrain.data.pixels import Pixels
from txtrain.data.template import ChatTemplate
from txtrain.data.turns import TurnEncoder
from txtrain.interop.folder import is_folder
from txtrain.interop.tokenizer import write_tokenizer
from txtrain.trained import Trained

GENERATION = "generation_config.json"


def said_of_input(trained: Trained) -> dict[str, Any]:
    """What config.json says of a model's input and labels."""
    names = dict(enumerate(trained.labels))
    labels: dict[str, Any] = {}
    if names:
        labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    if trained.problem_type is not None:
        labels["problem_type"] = trained.problem_type
    if isinstance(trained.inputs, Spectrograms):
        return trained.inputs.sizes() | labels
    if isinstance(trained.inputs, Pixels):
        return labels
    return {"vocab_size": _vocab_size(trained.model)} | _special_ids(trained, trained.end_tokens) | labels


def write_beside(folder: Path, trained: Trained, *, max_len: int) -> None:
    """Writes what makes the model's input, of at most `max_len` tokens, and what it makes of its output."""
    if isinstance(trained.inputs, Pixels | Spectrograms):
        if (trained.folder / pixels.FILE).is_file() and is_folder(trained.folder):
            shutil.copyfile(trained.folder / pixels.FILE, folder / pixels.FILE)
        else:
            trained.inputs.save(folder)
    else:
        as_is = trained.family is not None
        write_tokenizer(folder, trained.tokenizer, trained.folder, max_len=max_len, as_is=as_is)
        write_generation(folder, trained)


def write_generation(folder: Path, trained: Trained) -> None:
    """Writes the settings of generation; those of a Hugging Face folder as they are."""
    if trained.family is not None and (trained.folder / GENERATION).is_file():
        shutil.copyfile(trained.folder / GENERATION, folder / GENERATION)
        return
    template = ChatTemplate.of_folder(trained.folder)
    # In transformers an answer ends at these only, so they are those of a turn too.
    ends = TurnEncoder(template, trained.tokenizer).end_tokens if template else frozenset()
    write_json(folder / GENERATION, _special_ids(trained, trained.end_tokens | ends))


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _vocab_size(model: nn.Module) -> int:
    return next(module for module in model.modules() if isinstance(module, nn.Embedding)).num_embeddings


def _special_ids(trained: Trained, end_tokens: Set[int]) -> dict[str, Any]:
    ids = sorted(end_tokens)
    named = trained.tokenizer.named_tokens()
    found = {
        f"{name}_id": trained.tokenizer.core.token_to_id(named[name])
        for name in ("bos_token", "pad_token")
        if name in named
    }
    found |= zip(("decoder_start_token_id", "forced_bos_token_id"), trained.begin, strict=False)
    return {"bos_token_id": None, "pad_token_id": None} | found | {"eos_token_id": ids[0] if len(ids) == 1 else ids}
