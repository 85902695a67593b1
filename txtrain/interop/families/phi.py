"""Phi 1, 1.5 and 2 (https://arxiv.org/abs/2309.05463)."""

from txtrain.interop.common import ACTIVATIONS, ROPE_KEYS, SIZES, Rotary
from txtrain.interop.family import Always, Family, Field, Only
from txtrain.interop.keys import Extra, Keys, Nullable
from txtrain.interop.names import Rule, in_layers


class Phi(Family):
    """Parallel branches that read one norm, partly rotated heads, biases everywhere."""

    model_types = ("phi",)
    architecture = "PhiForCausalLM"
    keys = Keys(
        {
            **ROPE_KEYS,
            "vocab_size": 51200,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "num_key_value_heads": Nullable(int),
            "head_dim": Extra(int),
            "max_position_embeddings": 2048,
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-05,
            "qk_layernorm": False,
            "tie_word_embeddings": False,
        },
    )
    parts = (
        Always({"norm": "parallel", "norm.layer": "layernorm", "norm.bias": True, "norm.shared": True, "ffn": "gelu"}),
        Always({"attention.bias": True, "ffn.bias": True, "head.bias": True}),
        *SIZES,
        Field("model.num_kv_heads", "num_key_value_heads"),
        Field("model.head_dim", "head_dim", None),
        Rotary(fraction="partial_rotary_factor", default_fraction=0.5),
        Field("norm.eps", "layer_norm_eps"),
        Field("ffn.activation", "hidden_act", values=ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings"),
        Only("qk_layernorm"),
    )
    rules = (
        Rule("embedding.tokens", "model.embed_tokens"),
        Rule("stack.norm.final", "model.final_layernorm"),
        Rule("head.linear", "lm_head"),
        *in_layers(
            "stack.blocks.{layer}",
            "model.layers.{layer}",
            {
                "attention.q_proj": "self_attn.q_proj",
                "attention.k_proj": "self_attn.k_proj",
                "attention.v_proj": "self_attn.v_proj",
                "attention.o_proj": "self_attn.dense",
                "ffn.up_proj": "mlp.fc1",
                "ffn.down_proj": "mlp.fc2",
                "norm.norms.0": "input_layernorm",
            },
        ),
    )
