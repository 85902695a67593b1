"""The files that a folder has its tokenizer in: a `tokenizer.json`, or SentencePiece's own."""

import json
from itertools import dropwhile
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from txtrain.data import marian
from txtrain.data.sentencepiece import SentencePiece
from txtrain.data.special import read_json
from txtrain.errors import UserError

JSON, T5 = "tokenizer.json", "spiece.model"


def find_file(folder: Path) -> Path:
    """The file of a folder's tokenizer: Marian's go first, whose `tokenizer.json` can be of one side only."""
    if marian.has_files(folder):
        return folder / marian.SOURCE
    only_t5 = (folder / T5).is_file() and not (folder / JSON).is_file()
    return folder / (T5 if only_t5 else JSON)


def check_there(folder: Path, told: str, otherwise: str = "") -> None:
    """Refuses a folder that has no tokenizer.

    Args:
        folder: where it is to be.
        told: what names the folder at the beginning of the message.
        otherwise: what else to do, at its end.

    Raises:
        UserError: there is none.
    """
    if find_file(folder).is_file():
        return
    other = next((name for name in (*marian.FILES, "tokenizer.model", "vocab.txt") if (folder / name).is_file()), None)
    do = "put it there"
    if other is not None:
        line = f"AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
        do = f'make one of {other} by python -c "from transformers import AutoTokenizer; {line}"'
    raise UserError(f"{told} has no {JSON}: {do}{otherwise}")


def read_core(path: Path, told: str) -> tokenizers.Tokenizer:
    """The `tokenizers` object of a file that `find_file` found, or of Marian's other side; `told` names it in messages.

    Raises:
        UserError: it cannot be read.
    """
    if path.suffix == ".spm":
        return marian.read_side(path)
    if path.name == T5:
        return _of_t5(path)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"{told} cannot be read ({error}): give a {JSON}") from None


def drop_opening(core: tokenizers.Tokenizer) -> None:
    """Takes the special tokens before a text out of what a tokenizer's template sets around one."""
    if core.post_processor is not None:
        described = json.loads(core.to_str())
        _without_opening(described["post_processor"])
        core.post_processor = tokenizers.Tokenizer.from_str(json.dumps(described)).post_processor


def _without_opening(processor: dict[str, Any]) -> None:
    for inner in processor.get("processors", ()):
        _without_opening(inner)
    for form in {"single", "pair"} & processor.keys():
        processor[form] = list(dropwhile(lambda piece: "SpecialToken" in piece, processor[form]))


def content(path: Path) -> bytes:
    """All that the object is made of."""
    vocabulary = path.with_name(marian.VOCABULARY).read_bytes() if path.suffix == ".spm" else b""
    return path.read_bytes() + vocabulary


def _of_t5(path: Path) -> tokenizers.Tokenizer:
    """T5's `spiece.model`, as transformers reads it: words are cut one by one; sentinels come last, the 0th at the end.

    Raises:
        UserError: the model's config.json is of another family, or the file is of another kind.
    """
    config = read_json(path.with_name("config.json"))
    model = SentencePiece.read(path)
    if config.get("model_type", "t5") != "t5" or model.kind != "unigram" or model.byte_fallback:
        raise UserError(f"{path} is of a {config.get('model_type')} model, and of kind {model.kind}: give a {JSON}")
    entries = [(piece.text, piece.score) for piece in model.pieces]
    core = tokenizers.Tokenizer(models.Unigram(entries, unk_id=[text for text, _ in entries].index("<unk>")))
    if model.character_map:
        core.normalizer = normalizers.Precompiled(model.character_map)
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    core.decoder = decoders.Metaspace()
    count = read_json(path.with_name("tokenizer_config.json")).get("extra_ids", 100)
    special = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{number}>" for number in reversed(range(count)))]
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    end = [("</s>", core.token_to_id("</s>"))]
    core.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=end)
    return core
