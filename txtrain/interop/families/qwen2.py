"""Qwen 2 and 2.5 (https://arxiv.org/abs/2407.10671)."""

from txtrain.interop.common import ACTIVATIONS, SIZES, Rotary, Windows
from txtrain.interop.families.llama import Llama
from txtrain.interop.family import Always, Family, Field


class Qwen2(Family):
    """Llama with biases on queries, keys and values, and windows in some layers."""

    model_types = ("qwen2",)
    architecture = "Qwen2ForCausalLM"
    parts = (
        Always({"norm": "pre", "norm.layer": "rmsnorm", "ffn": "swiglu", "attention.bias": "qkv"}),
        *SIZES,
        Field("model.num_kv_heads", "num_key_value_heads", None),
        Field("model.head_dim", "head_dim", None),
        Rotary(),
        Windows(),
        Field("norm.eps", "rms_norm_eps", 1e-6),
        Field("ffn.activation", "hidden_act", "silu", ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings", False),
    )
    rules = Llama.rules
