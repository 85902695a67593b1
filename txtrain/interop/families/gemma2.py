"""Gemma 2 (https://arxiv.org/abs/2408.00118)."""

from txtrain.interop.common import ACTIVATIONS, LLAMA_RULES, SIZES, Rotary, Windows
from txtrain.interop.family import Always, Family, Field, Only
from txtrain.interop.names import in_layers


class Gemma2(Family):
    """Norms before and after each sublayer, capped scores and logits, a window in every other layer."""

    model_types = ("gemma2",)
    architecture = "Gemma2ForCausalLM"
    parts = (
        Always({"norm": "sandwich", "norm.layer": "rmsnorm", "norm.unit_offset": True}),
        Always({"ffn": "geglu", "embedding.scale": True}),
        *SIZES,
        Field("model.num_kv_heads", "num_key_value_heads", 4),
        Field("model.head_dim", "head_dim", 256),
        Rotary(),
        Windows(every_other=True),
        Field(
            "attention.scale", "query_pre_attn_scalar", 256, to_ours=lambda x: x**-0.5, to_theirs=lambda x: round(x**-2)
        ),
        Field("attention.soft_cap", "attn_logit_softcapping", 50.0),
        Field("head.soft_cap", "final_logit_softcapping", 30.0),
        Field("norm.eps", "rms_norm_eps", 1e-6),
        Field("attention.bias", "attention_bias", False),
        Field("ffn.activation", "hidden_activation", "gelu_pytorch_tanh", ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings", True),
        Only("use_bidirectional_attention", (None, False)),
    )
    rules = (
        *LLAMA_RULES,
        *in_layers(
            "stack.blocks.{layer}",
            "model.layers.{layer}",
            {
                "norm.inner.0": "input_layernorm",
                "norm.inner.1": "pre_feedforward_layernorm",
                "norm.outer.0": "post_attention_layernorm",
                "norm.outer.1": "post_feedforward_layernorm",
            },
        ),
    )
