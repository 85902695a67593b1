"""Whether an exported folder computes what the model does: here, and in transformers if that is installed."""

import logging
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from txtrain.config import instantiate
from txtrain.errors import UserError
from txtrain.interop.folder import Imported, read_folder
from txtrain.model import EncoderDecoder
from txtrain.trained import Trained

ROWS, LENGTH = 2, 64
THEIR_NAMES = {"tokens": "input_ids", "images": "pixel_values", "sound": "input_values"}
CLOSE = 1e-4  # of the largest logit, in float32


@torch.no_grad()
def compare(trained: Trained, folder: Path) -> str:
    """How equal the logits are, in words; computed in float32 of the weights as they were written.

    Raises:
        UserError: they are not equal.
    """
    imported = read_folder(folder)
    inputs = random_inputs(imported, min(LENGTH, trained.max_len))
    expected = logits(trained.model.float(), inputs)
    readers: dict[str, Callable[[], Tensor]] = {"txtrain": lambda: logits(build(imported), inputs)}
    if find_spec("transformers"):
        readers["transformers"] = lambda: their_logits(imported, inputs)
    furthest = 0.0
    for name, read in readers.items():
        distance = float((read() - expected).abs().max() / expected.abs().max())
        if not distance <= CLOSE:
            raise UserError(
                f"the exported model computes other logits in {name} (by {distance:.1e} of the largest), so it was "
                "removed: this is a mistake in txtrain or in that library"
            )
        furthest = max(furthest, distance)
    missing = "" if len(readers) > 1 else "; pip install transformers to check with it too"
    return f"logits equal in {' and '.join(readers)} (within {furthest:.0e} of the largest){missing}"


def build(imported: Imported) -> nn.Module:
    """The model of a folder, in float32."""
    parts = {group: instantiate(node, group) for group, node in imported.axes.items()}
    shape = parts.pop("model")
    return imported.build(partial(imported.family.model_class, shape=shape, **imported.sizes, **parts)).eval()


def random_inputs(imported: Imported, length: int) -> Tensor:
    """Tokens (B, length), images (B, C, height, width), or spectrograms (B, F, M) of full length, for a model."""
    draws = torch.Generator().manual_seed(0)
    if imported.family.reads == "images":
        embedding = imported.axes["embedding"]
        return torch.randn(ROWS, embedding["channels"], *embedding["image_size"], generator=draws)
    if imported.family.reads == "sound":
        return torch.randn(ROWS, imported.sizes["max_frames"], imported.sizes["num_mels"], generator=draws)
    tokens = torch.randint(imported.sizes["vocab_size"], (ROWS, length), generator=draws)
    pad = imported.config.get("pad_token_id")
    tokens[tokens == pad] = 0 if pad else 1  # RoBERTa counts positions of other tokens only
    return tokens


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """What our model says of inputs, an encoder-decoder of the same as source and target."""
    return model(inputs, inputs) if isinstance(model, EncoderDecoder) else model(inputs)


def their_logits(imported: Imported, inputs: Tensor) -> Tensor:
    """What transformers says."""
    import transformers

    kind: Any = getattr(transformers, imported.config["architectures"][0])
    given = {THEIR_NAMES[imported.family.reads]: inputs}
    if imported.family.model_class is EncoderDecoder:
        given["decoder_input_ids"] = inputs
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.utils.logging.disable_progress_bar()
        model = kind.from_pretrained(imported.path, dtype=torch.float32, attn_implementation="eager").eval()
        output = model(**given)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state
