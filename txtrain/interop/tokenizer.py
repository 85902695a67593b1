"""A tokenizer's files as `transformers` reads them, beside a model's weights or an adapter's."""

import json
import shutil
from pathlib import Path

from txtrain.data import marian
from txtrain.data.template import ChatTemplate
from txtrain.data.tokenizer import Tokenizer

# Those of a Hugging Face folder that we take over as they are.
TAKEN_OVER = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_tokenizer(folder: Path, tokenizer: Tokenizer, source: Path, *, max_len: int, as_is: bool = False) -> None:
    """Writes the tokenizer and the chat template.

    Args:
        folder: where to.
        tokenizer: loaded.
        source: where its files are.
        max_len: longest sequence that the model reads.
        as_is: whether the source is a Hugging Face folder, whose files are copied.
    """
    tokenizer.save(folder / "tokenizer.json")
    if as_is:
        for name in TAKEN_OVER:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return
    template = ChatTemplate.of_folder(source)
    if template is not None:
        template.save(folder)
    special = tokenizer.named_tokens() | (dict(template.special_tokens) if template else {})
    kind = "MarianTokenizer" if marian.has_files(folder) else "PreTrainedTokenizerFast"
    config = {**special, "tokenizer_class": kind, "model_max_length": max_len}
    text = json.dumps(config, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
