"""Gemma 2 (https://arxiv.org/abs/2408.00118)."""

from txtrain.interop.common import ACTIVATIONS, LLAMA_RULES, ROPE_KEYS, SIZES, Rotary, Windows
from txtrain.interop.family import Always, Family, Field, Only
from txtrain.interop.keys import Keys, Nullable
from txtrain.interop.names import in_layers


class Gemma2(Family):
    """Norms before and after each sublayer, capped scores and logits, a window in every other layer."""

    model_types = ("gemma2",)
    architecture = "Gemma2ForCausalLM"
    keys = Keys(
        {
            **ROPE_KEYS,
            "vocab_size": 256000,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-06,
            "attention_bias": False,
            "query_pre_attn_scalar": 256,
            "sliding_window": Nullable(int, 4096),
            "layer_types": Nullable(list),
            "final_logit_softcapping": Nullable(float, 30.0),
            "attn_logit_softcapping": Nullable(float, 50.0),
            "use_bidirectional_attention": Nullable(bool),
            "tie_word_embeddings": True,
        },
        neutral=frozenset({"hidden_act"}),
    )
    parts = (
        Always({"norm": "sandwich", "norm.layer": "rmsnorm", "norm.unit_offset": True}),
        Always({"ffn": "geglu", "embedding.scale": True}),
        *SIZES,
        Field("model.num_kv_heads", "num_key_value_heads"),
        Field("model.head_dim", "head_dim"),
        Rotary(),
        Windows(every_other=True),
        Field("attention.scale", "query_pre_attn_scalar", to_ours=lambda x: x**-0.5, to_theirs=lambda x: round(x**-2)),
        Field("attention.soft_cap", "attn_logit_softcapping"),
        Field("head.soft_cap", "final_logit_softcapping"),
        Field("norm.eps", "rms_norm_eps"),
        Field("attention.bias", "attention_bias"),
        Field("ffn.activation", "hidden_activation", values=ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings"),
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
