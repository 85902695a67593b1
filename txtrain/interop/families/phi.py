"""Phi 1, 1.5 and 2 (https://arxiv.org/abs/2309.05463)."""

from txtrain.interop.common import ACTIVATIONS, SIZES, Rotary
from txtrain.interop.family import Always, Family, Field, Only
from txtrain.interop.names import Rule, in_layers


class Phi(Family):
    """Parallel branches that read one norm, partly rotated heads, biases everywhere."""

    model_types = ("phi",)
    architecture = "PhiForCausalLM"
    parts = (
        Always({"norm": "parallel", "norm.layer": "layernorm", "norm.bias": True, "norm.shared": True, "ffn": "gelu"}),
        Always({"attention.bias": True, "ffn.bias": True, "head.bias": True}),
        *SIZES,
        Field("model.num_kv_heads", "num_key_value_heads", None),
        Rotary(fraction="partial_rotary_factor", default_fraction=0.5),
        Field("norm.eps", "layer_norm_eps", 1e-5),
        Field("ffn.activation", "hidden_act", "gelu_new", ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings", False),
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
