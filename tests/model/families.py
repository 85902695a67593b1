"""A transformers model with random weights, and ours with the same: what tests of model families share."""

import re

import torch
import transformers

from txtrain.model import Encoder, Shape
from txtrain.model.embed import Embedding
from txtrain.model.head import Head

VOCAB, LENGTH, DIM, HEADS, INNER, LAYERS, EPS = 50, 24, 32, 4, 64, 2, 1e-5
SIZES = {"hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": INNER}


def reference(kind, **config):
    """A transformers model with every weight random, norms and biases too, so that none goes unnoticed."""
    config_class = getattr(transformers, re.sub("For.*|LMHead.*|Model$", "", kind) + "Config")
    model_class = getattr(transformers, kind)
    torch.manual_seed(0)
    model = model_class._from_config(config_class(vocab_size=VOCAB, **config), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
            if parameter.dim() == 1:
                parameter.add_(0.5)
    return model


def new_model(model_class, weights, *, kv_heads=None, inner=INNER, embedding=Embedding, head=Head, **axes):
    shape = Shape(dim=DIM, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=kv_heads, ffn_dim=inner)
    if model_class is not Encoder:
        axes["head"] = head
    model = model_class(vocab_size=VOCAB, max_len=LENGTH, shape=shape, embedding=embedding, **axes).eval()
    model.load_state_dict(weights)
    return model


def renamed(state, *rules):
    """State with each rule's first string replaced by its second, in all names; a rule to None drops the weight."""
    weights = {}
    for name, value in state.items():
        for old, new in rules:
            if name and re.search(old, name):
                name = None if new is None else re.sub(old, new, name)
        if name:
            weights[name] = value
    return weights


def split_heads(weights):
    """GPT-NeoX and BLOOM have one projection with queries, keys and values side by side in each head."""
    for name in [name for name in weights if "query_key_value" in name]:
        fused = weights.pop(name).unflatten(0, (HEADS, 3, -1))
        for i, part in enumerate(("q_proj", "k_proj", "v_proj")):
            weights[name.replace("query_key_value", part)] = fused[:, i].flatten(0, 1)
    return weights


LLAMA = [
    (r"^model\.embed_tokens", "embedding.tokens"),
    (r"^model\.norm", "stack.norm.final"),
    (r"^lm_head", "head.linear"),
    (r"^model\.layers", "stack.blocks"),
    ("self_attn", "attention"),
    (r"\.mlp\.", ".ffn."),
]
FUSED = [
    (r"dense_h_to_4h", "up_proj"),
    (r"dense_4h_to_h", "down_proj"),
    (r"\.mlp\.", ".ffn."),
    (r"attention\.dense", "attention.o_proj"),
    (r"input_layernorm", "norm.norms.0"),
    (r"post_attention_layernorm", "norm.norms.1"),
    (r"^lm_head", "head.linear"),
]
