"""BLOOM (https://arxiv.org/abs/2211.05100)."""

from txtrain.interop.common import QKV
from txtrain.interop.family import Always, Family, Field, Only, Same
from txtrain.interop.keys import Keys
from txtrain.interop.names import Rule, in_layers


class BLOOM(Family):
    """ALiBi, a norm after the embedding, biases everywhere."""

    model_types = ("bloom",)
    architecture = "BloomForCausalLM"
    prefix = "transformer."
    max_len = None
    keys = Keys(
        {
            "vocab_size": 250880,
            "hidden_size": 64,
            "n_layer": 2,
            "n_head": 8,
            "layer_norm_epsilon": 1e-05,
            "apply_residual_connection_post_layernorm": False,
            "tie_word_embeddings": True,
        },
        spellings={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_embed": "hidden_size"},
        neutral=frozenset(
            {
                "attention_softmax_in_fp32",
                "bias_dropout_fusion",
                "masked_softmax_fusion",
                "n_inner",
                "offset_alibi",
                "seq_length",
                "skip_bias_add",
                "skip_bias_add_qkv",
                "slow_but_exact",
            }
        ),
    )
    parts = (
        Always({"encoding": "alibi", "encoding.max_exponent": 8.0, "embedding.norm": True}),
        Always({"norm": "pre", "norm.layer": "layernorm", "norm.bias": True, "attention.bias": True}),
        Always({"ffn": "gelu", "ffn.activation": "gelu_tanh", "ffn.bias": True, "model.ffn_dim": None}),
        Field("model.dim", "hidden_size"),
        Field("model.num_layers", "n_layer"),
        Field("model.num_heads", "n_head"),
        Same(("norm.eps", "embedding.norm_eps"), "layer_norm_epsilon"),
        Field("embedding.tied", "tie_word_embeddings"),
        Only("apply_residual_connection_post_layernorm"),
    )
    rules = (
        Rule("embedding.tokens", "transformer.word_embeddings"),
        Rule("embedding.norm", "transformer.word_embeddings_layernorm"),
        Rule("stack.norm.final", "transformer.ln_f"),
        Rule("head.linear", "lm_head"),
        *in_layers(
            "stack.blocks.{layer}", "transformer.h.{layer}", {QKV: "self_attention.query_key_value"}, by_head=True
        ),
        *in_layers(
            "stack.blocks.{layer}",
            "transformer.h.{layer}",
            {
                "attention.o_proj": "self_attention.dense",
                "ffn.up_proj": "mlp.dense_h_to_4h",
                "ffn.down_proj": "mlp.dense_4h_to_h",
                "norm.norms.0": "input_layernorm",
                "norm.norms.1": "post_attention_layernorm",
            },
        ),
    )
