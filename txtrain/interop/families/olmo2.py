"""OLMo 2 (https://arxiv.org/abs/2501.00656)."""

from txtrain.interop.common import ACTIVATIONS, LLAMA_RULES, ROPE_KEYS, SIZES, Rotary
from txtrain.interop.family import Always, Family, Field, Same
from txtrain.interop.keys import Extra, Keys, Nullable
from txtrain.interop.names import in_layers


class OLMo2(Family):
    """Norms after each sublayer, inside the branch, and on all queries and keys of a token."""

    model_types = ("olmo2",)
    architecture = "Olmo2ForCausalLM"
    keys = Keys(
        {
            **ROPE_KEYS,
            "vocab_size": 50304,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": Nullable(int),
            "head_dim": Extra(int),
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "attention_bias": False,
            "tie_word_embeddings": False,
        },
    )
    parts = (
        Always({"norm": "reordered", "norm.layer": "rmsnorm", "ffn": "swiglu", "attention.qk_norm": "all"}),
        *SIZES,
        Field("model.num_kv_heads", "num_key_value_heads"),
        Field("model.head_dim", "head_dim", None),
        Rotary(),
        Same(("norm.eps", "attention.qk_norm_eps"), "rms_norm_eps"),
        Field("attention.bias", "attention_bias"),
        Field("ffn.activation", "hidden_act", values=ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings"),
    )
    rules = (
        *LLAMA_RULES,
        *in_layers(
            "stack.blocks.{layer}",
            "model.layers.{layer}",
            {"norm.norms.0": "post_attention_layernorm", "norm.norms.1": "post_feedforward_layernorm"},
        ),
    )
