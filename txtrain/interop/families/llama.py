"""Llama 1 to 3 (https://arxiv.org/abs/2407.21783), and models of its shape: SmolLM, TinyLlama, Yi."""

from txtrain.interop.common import ACTIVATIONS, LLAMA_RULES, ROPE_KEYS, SIZES, Rotary
from txtrain.interop.family import Always, Family, Field, Only
from txtrain.interop.keys import Extra, Keys, Nullable
from txtrain.interop.names import in_layers


class Llama(Family):
    """Rotary positions, pre-norm with RMSNorm, grouped queries, SwiGLU."""

    model_types = ("llama",)
    architecture = "LlamaForCausalLM"
    keys = Keys(
        {
            **ROPE_KEYS,
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": Nullable(int),
            "head_dim": Nullable(int),
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-06,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "rope_interleaved": Extra(bool),
        },
    )
    parts = (
        Always({"norm": "pre", "norm.layer": "rmsnorm", "ffn": "swiglu"}),
        *SIZES,
        Field("model.num_kv_heads", "num_key_value_heads"),
        Field("model.head_dim", "head_dim"),
        Rotary(),
        Field("norm.eps", "rms_norm_eps"),
        Field("attention.bias", "attention_bias"),
        Field("ffn.bias", "mlp_bias"),
        Field("ffn.activation", "hidden_act", values=ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings"),
        Only("rope_interleaved"),
    )
    rules = (
        *LLAMA_RULES,
        *in_layers(
            "stack.blocks.{layer}",
            "model.layers.{layer}",
            {"norm.norms.0": "input_layernorm", "norm.norms.1": "post_attention_layernorm"},
        ),
    )
