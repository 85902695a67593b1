"""GPT-NeoX (https://arxiv.org/abs/2204.06745) and Pythia."""

from txtrain.interop.common import ACTIVATIONS, QKV, ROPE_KEYS, SIZES, NarrowHeads, Rotary
from txtrain.interop.family import Always, Choice, Family, Field
from txtrain.interop.keys import Extra, Keys
from txtrain.interop.names import Rule, in_layers


class GPTNeoX(Family):
    """Parallel branches with a norm each, or one after the other, and partly rotated heads."""

    model_types = ("gpt_neox",)
    architecture = "GPTNeoXForCausalLM"
    prefix = "gpt_neox."
    ignored = r".*(rotary_emb\.inv_freq|attention\.(masked_)?bias)"
    keys = Keys(
        {
            **ROPE_KEYS,
            "vocab_size": 50432,
            "hidden_size": 6144,
            "intermediate_size": 24576,
            "num_hidden_layers": 44,
            "num_attention_heads": 64,
            "head_dim": Extra(int),
            "max_position_embeddings": 2048,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-05,
            "use_parallel_residual": True,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rotary_emb_base": Extra(float),
            "rotary_pct": Extra(float),
        },
        neutral=frozenset({"is_decoder"}),
    )
    parts = (
        Always({"norm.layer": "layernorm", "norm.bias": True, "ffn": "gelu", "ffn.bias": True}),
        Choice("use_parallel_residual", {True: {"norm": "parallel", "norm.shared": False}, False: {"norm": "pre"}}),
        *SIZES,
        NarrowHeads(),
        Rotary(theta="rotary_emb_base", fraction="rotary_pct", default_fraction=0.25),
        Field("norm.eps", "layer_norm_eps"),
        Field("attention.bias", "attention_bias"),
        Field("ffn.activation", "hidden_act", values=ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings"),
    )
    rules = (
        Rule("embedding.tokens", "gpt_neox.embed_in"),
        Rule("stack.norm.final", "gpt_neox.final_layer_norm"),
        Rule("head.linear", "embed_out", read=("embed_out", "lm_head")),
        *in_layers("stack.blocks.{layer}", "gpt_neox.layers.{layer}", {QKV: "attention.query_key_value"}, by_head=True),
        *in_layers(
            "stack.blocks.{layer}",
            "gpt_neox.layers.{layer}",
            {
                "attention.o_proj": "attention.dense",
                "ffn.up_proj": "mlp.dense_h_to_4h",
                "ffn.down_proj": "mlp.dense_4h_to_h",
                "norm.norms.0": "input_layernorm",
                "norm.norms.1": "post_attention_layernorm",
            },
        ),
    )
