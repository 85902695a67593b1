"""Qwen 3 (https://arxiv.org/abs/2505.09388)."""

from txtrain.interop.common import ACTIVATIONS, SIZES, Rotary, Windows
from txtrain.interop.families.llama import Llama
from txtrain.interop.family import Always, Family, Field, Same


class Qwen3(Family):
    """Llama with a norm on each head's queries and keys, and windows in some layers."""

    model_types = ("qwen3",)
    architecture = "Qwen3ForCausalLM"
    parts = (
        Always({"norm": "pre", "norm.layer": "rmsnorm", "ffn": "swiglu", "attention.qk_norm": "head"}),
        *SIZES,
        Field("model.num_kv_heads", "num_key_value_heads", None),
        Field("model.head_dim", "head_dim", 128),
        Rotary(),
        Windows(),
        Same(("norm.eps", "attention.qk_norm_eps"), "rms_norm_eps", 1e-6),
        Field("attention.bias", "attention_bias", False),
        Field("ffn.activation", "hidden_act", "silu", ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings", False),
    )
    rules = Llama.rules
