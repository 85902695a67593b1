"""GPT-2 (https://openai.com/research/better-language-models)."""

from txtrain.interop.common import ACTIVATIONS, QKV
from txtrain.interop.family import Always, Family, Field, Only
from txtrain.interop.names import Rule, in_layers


class GPT2(Family):
    """Learned positions, pre-norm with LayerNorm, biases everywhere."""

    model_types = ("gpt2",)
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    ignored = r".*\.attn\.(masked_)?bias"
    max_len = "n_positions"
    parts = (
        Always({"encoding": "learned", "norm": "pre", "ffn": "gelu"}),
        Always({"norm.layer": "layernorm", "norm.bias": True, "attention.bias": True, "ffn.bias": True}),
        Field("model.dim", "n_embd"),
        Field("model.num_layers", "n_layer"),
        Field("model.num_heads", "n_head"),
        Field("model.ffn_dim", "n_inner", None),
        Field("encoding.max_len", "n_positions"),
        Field("norm.eps", "layer_norm_epsilon", 1e-5),
        Field("ffn.activation", "activation_function", "gelu_new", ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings", True),
        Only("scale_attn_weights", (True,)),
        Only("scale_attn_by_inverse_layer_idx"),
        Only("add_cross_attention"),
    )
    rules = (
        Rule("embedding.tokens", "transformer.wte"),
        Rule("stack.encoding.table", "transformer.wpe"),
        Rule("stack.norm.final", "transformer.ln_f"),
        Rule("head.linear", "lm_head"),
        *in_layers("stack.blocks.{layer}", "transformer.h.{layer}", {"norm.norms.0": "ln_1", "norm.norms.1": "ln_2"}),
        *in_layers(
            "stack.blocks.{layer}",
            "transformer.h.{layer}",
            {
                QKV: "attn.c_attn",
                "attention.o_proj": "attn.c_proj",
                "ffn.up_proj": "mlp.c_fc",
                "ffn.down_proj": "mlp.c_proj",
            },
            transposed=True,
        ),
    )
