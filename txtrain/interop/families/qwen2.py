"""Qwen 2 and 2.5 (https://arxiv.org/abs/2407.10671)."""

from txtrain.interop.common import ACTIVATIONS, ROPE_KEYS, SIZES, Rotary, Windows
from txtrain.interop.families.llama import Llama
from txtrain.interop.family import Always, Family, Field
from txtrain.interop.keys import Extra, Keys, Nullable


class Qwen2(Family):
    """Llama with biases on queries, keys and values, and windows in some layers."""

    model_types = ("qwen2",)
    architecture = "Qwen2ForCausalLM"
    keys = Keys(
        {
            **ROPE_KEYS,
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": Nullable(int, 32),
            "head_dim": Extra(int),
            "max_position_embeddings": 32768,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-06,
            "use_sliding_window": False,
            "sliding_window": Nullable(int, 4096),
            "max_window_layers": 28,
            "layer_types": Nullable(list),
            "tie_word_embeddings": False,
        },
    )
    parts = (
        Always({"norm": "pre", "norm.layer": "rmsnorm", "ffn": "swiglu", "attention.bias": "qkv"}),
        *SIZES,
        Field("model.num_kv_heads", "num_key_value_heads"),
        Field("model.head_dim", "head_dim", None),
        Rotary(),
        Windows(),
        Field("norm.eps", "rms_norm_eps"),
        Field("ffn.activation", "hidden_act", values=ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings"),
    )
    rules = Llama.rules
