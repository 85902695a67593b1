"""OLMo 2 (https://arxiv.org/abs/2501.00656)."""

from txtrain.interop.common import ACTIVATIONS, LLAMA_RULES, SIZES, Rotary
from txtrain.interop.family import Always, Family, Field, Same
from txtrain.interop.names import in_layers


class OLMo2(Family):
    """Norms after each sublayer, inside the branch, and on all queries and keys of a token."""

    model_types = ("olmo2",)
    architecture = "Olmo2ForCausalLM"
    parts = (
        Always({"norm": "reordered", "norm.layer": "rmsnorm", "ffn": "swiglu", "attention.qk_norm": "all"}),
        *SIZES,
        Field("model.num_kv_heads", "num_key_value_heads", None),
        Rotary(),
        Same(("norm.eps", "attention.qk_norm_eps"), "rms_norm_eps", 1e-5),
        Field("attention.bias", "attention_bias", False),
        Field("ffn.activation", "hidden_act", "silu", ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings", False),
    )
    rules = (
        *LLAMA_RULES,
        *in_layers(
            "stack.blocks.{layer}",
            "model.layers.{layer}",
            {"norm.norms.0": "post_attention_layernorm", "norm.norms.1": "post_feedforward_layernorm"},
        ),
    )
