"""Hugging Face folders of tiny models with random weights, and ours made of them: what tests of interop share."""

from functools import partial

import torch
import transformers
from hydra.utils import instantiate
from transformers.utils import logging

from txtrain.data.tokenizer import Byte
from txtrain.interop import read_folder

VOCAB, LENGTH = 50, 24
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def write_folder(path, model_type, *, auto="AutoModelForCausalLM", **config):
    """Writes a random model of a family, every weight of which matters, and returns it."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings = transformers.AutoConfig.for_model(model_type, **{"vocab_size": VOCAB, **NO_TOKENS, **config})
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(settings, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
            if parameter.dim() == 1:
                parameter.add_(0.5)
    model.save_pretrained(path)
    logging.set_verbosity(verbosity)
    return model


def write_tokenizer(path):
    """A tokenizer of 257 tokens."""
    tokenizer = Byte()
    tokenizer.fit()
    tokenizer.save(path / "tokenizer.json")
    return tokenizer


def build(imported, max_len=None):
    """Our model of a folder."""
    parts = {group: instantiate(node, _convert_="all") for group, node in imported.axes.items()}
    shape = parts.pop("model")
    sizes = imported.sizes | ({"max_len": max_len} if max_len else {})
    return imported.build(partial(imported.family.model_class, shape=shape, **sizes, **parts)).eval()


def read(path):
    return build(read_folder(path))
