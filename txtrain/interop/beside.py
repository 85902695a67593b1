"""What an exported folder has beside weights: how the model's input is made, the names of its labels."""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from txtrain.data import pixels
from txtrain.data.pixels import Pixels
from txtrain.data.template import ChatTemplate
from txtrain.interop.folder import is_folder
from txtrain.trained import Trained

# Files of a tokenizer and a model that we take over as they are.
TAKEN_OVER = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")


def said_of_input(trained: Trained) -> dict[str, Any]:
    """What config.json says of a model's input and labels."""
    names = dict(enumerate(trained.labels))
    labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}} if names else {}
    if isinstance(trained.inputs, Pixels):
        return labels
    return {"vocab_size": _vocab_size(trained.model)} | _special_ids(trained) | labels


def write_beside(folder: Path, trained: Trained) -> None:
    """Writes what makes the model's input, and what it makes of its output."""
    if isinstance(trained.inputs, Pixels):
        if (trained.folder / pixels.FILE).is_file() and is_folder(trained.folder):
            shutil.copyfile(trained.folder / pixels.FILE, folder / pixels.FILE)
        else:
            trained.inputs.save(folder)
    else:
        write_tokenizer(folder, trained)


def write_tokenizer(folder: Path, trained: Trained) -> None:
    """Writes the tokenizer, the chat template and generation settings; those of a Hugging Face folder as they are."""
    trained.tokenizer.save(folder / "tokenizer.json")
    if is_folder(trained.folder):
        for name in TAKEN_OVER:
            if (trained.folder / name).is_file():
                shutil.copyfile(trained.folder / name, folder / name)
    else:
        template = ChatTemplate.of_folder(trained.folder)
        if template is not None:
            template.save(folder)
        special = trained.tokenizer.named_tokens() | (dict(template.special_tokens) if template else {})
        fast = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": trained.max_len}
        write_json(folder / "tokenizer_config.json", {**special, **fast})
    if not (folder / "generation_config.json").is_file():
        write_json(folder / "generation_config.json", _special_ids(trained))


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _vocab_size(model: nn.Module) -> int:
    return next(module for module in model.modules() if isinstance(module, nn.Embedding)).num_embeddings


def _special_ids(trained: Trained) -> dict[str, Any]:
    ids = sorted(trained.end_tokens)
    named = trained.tokenizer.named_tokens()
    found = {
        f"{name}_id": trained.tokenizer.core.token_to_id(named[name])
        for name in ("bos_token", "pad_token")
        if name in named
    }
    found |= zip(("decoder_start_token_id", "forced_bos_token_id"), trained.begin, strict=False)
    return {"bos_token_id": None, "pad_token_id": None} | found | {"eos_token_id": ids[0] if len(ids) == 1 else ids}
