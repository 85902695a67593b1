"""Decoders of every family and variant: the logits of their folders are those of `transformers`."""

from functools import partial

import pytest
import torch
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from tests.interop.random_folders import LENGTH, VOCAB, build, write_folder
from txtrain.interop import read_folder
from txtrain.interop.axes import to_flat

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
WINDOW = 7

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}
BLOOM = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
MPT = {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": LENGTH}
GEMMA = GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}


def rope(kind, **rest):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 5000.0, **rest}}


LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 12}
YARN = {"factor": 4.0, "original_max_position_embeddings": 12}

VARIANTS = {
    "gpt2": ("gpt2", GPT2),
    "gpt2 untied, exact gelu, inner width": (
        "gpt2",
        GPT2 | {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 40},
    ),
    "llama": ("llama", SIZES),
    "llama tied and grouped": ("llama", GROUPED | {"tie_word_embeddings": True}),
    "llama with biases and wide heads": ("llama", GROUPED | {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama linear": ("llama", SIZES | rope("linear", factor=4.0)),
    "llama dynamic": ("llama", SIZES | {"max_position_embeddings": 12} | rope("dynamic", factor=4.0)),
    "llama yarn": ("llama", SIZES | rope("yarn", **YARN)),
    "llama yarn of DeepSeek": ("llama", SIZES | rope("yarn", **YARN, mscale=0.7, mscale_all_dim=0.9, beta_fast=16.0)),
    "llama 3": ("llama", SIZES | rope("llama3", **LLAMA3)),
    "mistral": ("mistral", GROUPED | {"sliding_window": WINDOW}),
    "mistral without window": ("mistral", GROUPED | {"sliding_window": None}),
    "qwen2": ("qwen2", GROUPED),
    "qwen2 with windows, tied": (
        "qwen2",
        GROUPED
        | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 16}),
    "qwen3 with biases and windows": (
        "qwen3",
        GROUPED
        | {"head_dim": 8, "attention_bias": True, "use_sliding_window": True}
        | {"sliding_window": WINDOW, "max_window_layers": 0, "rms_norm_eps": 1e-3},
    ),
    "gpt_neox": ("gpt_neox", SIZES),
    "gpt_neox one after the other, without biases": (
        "gpt_neox",
        SIZES | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "gpt_neox fully rotated": ("gpt_neox", SIZES | rope("default", partial_rotary_factor=1.0)),
    "bloom": ("bloom", BLOOM),
    "bloom of six heads, untied": ("bloom", BLOOM | {"hidden_size": 48, "n_head": 6, "tie_word_embeddings": False}),
    "mpt": ("mpt", MPT),
    "mpt of six heads, steep": (
        "mpt",
        MPT | {"d_model": 48, "n_heads": 6, "attn_config": {"alibi_bias_max": 16, "softmax_scale": 0.3}},
    ),
    "olmo2": ("olmo2", GROUPED | {"rms_norm_eps": 1e-3}),
    "olmo2 with biases": ("olmo2", SIZES | {"attention_bias": True, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2 without caps and windows": (
        "gemma2",
        GEMMA
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": ["full_attention"] * 3},
    ),
    "phi": ("phi", SIZES | {"partial_rotary_factor": 0.5}),
    "phi grouped and tied": ("phi", GROUPED | {"tie_word_embeddings": True}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def both(request, tmp_path_factory):
    """Theirs, ours, and what was read."""
    path = tmp_path_factory.mktemp("folder")
    model_type, config = VARIANTS[request.param]
    theirs = write_folder(path, model_type, **config)
    if "attn_config" in config:  # which transformers reads and leaves at its default
        theirs.transformer.build_mpt_alibi_tensor = partial(build_mpt_alibi_tensor, alibi_bias_max=16)
    imported = read_folder(path)
    return theirs, build(imported), imported


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_are_equal(both, tokens):
    theirs, ours, _ = both
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, **CLOSE)


@torch.no_grad()
def test_logits_are_equal_with_padding(both, tokens):
    theirs, ours, _ = both
    padding = torch.ones(2, LENGTH, dtype=torch.bool)
    padding[1, 17:] = False
    # Dynamic scaling follows the length, which theirs takes of the whole batch.
    rows = [0] if ours.stack.encoding.settled_len else [0, 1]
    expected = theirs(tokens, attention_mask=padding.long()).logits
    got = ours(tokens, padding=padding)
    torch.testing.assert_close(got[rows][padding[rows]], expected[rows][padding[rows]], **CLOSE)


@torch.no_grad()
def test_logits_are_equal_with_a_cache(both, tokens):
    theirs, ours, _ = both
    cache = ours.new_cache(batch=2)
    parts = [ours(part, cache=cache) for part in tokens.split([9, 1, LENGTH - 10], dim=1)]
    expected = theirs(tokens).logits
    if ours.stack.encoding.settled_len:  # a cached pass is the uncached one of the length so far
        parts, expected = parts[-1:], expected[:, 10:]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, **CLOSE)


def test_the_axes_give_the_config_back(both):
    *_, imported = both
    assert imported.family.lacks(imported.axes) == {}
    written = {"max_position_embeddings": imported.max_len} | imported.family.config(imported.axes)
    assert to_flat(imported.family.axes(written)) == to_flat(imported.axes)
