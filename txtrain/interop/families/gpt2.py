"""GPT-2 (https://openai.com/research/better-language-models)."""

from txtrain.interop.common import ACTIVATIONS, QKV
from txtrain.interop.family import Always, Family, Field, Only
from txtrain.interop.keys import Keys, Nullable
from txtrain.interop.names import Rule, in_layers


class GPT2(Family):
    """Learned positions, pre-norm with LayerNorm, biases everywhere."""

    model_types = ("gpt2",)
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    ignored = r".*\.attn\.(masked_)?bias"
    max_len = "n_positions"
    keys = Keys(
        {
            "vocab_size": 50257,
            "n_positions": 1024,
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_inner": Nullable(int),
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-05,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        },
        spellings={
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
        neutral=frozenset(
            {
                "n_ctx",
                "reorder_and_upcast_attn",
                "summary_activation",
                "summary_first_dropout",
                "summary_proj_to_labels",
                "summary_type",
                "summary_use_proj",
            }
        ),
    )
    parts = (
        Always({"encoding": "learned", "norm": "pre", "ffn": "gelu"}),
        Always({"norm.layer": "layernorm", "norm.bias": True, "attention.bias": True, "ffn.bias": True}),
        Field("model.dim", "n_embd"),
        Field("model.num_layers", "n_layer"),
        Field("model.num_heads", "n_head"),
        Field("model.ffn_dim", "n_inner"),
        Field("encoding.max_len", "n_positions"),
        Field("norm.eps", "layer_norm_epsilon"),
        Field("ffn.activation", "activation_function", values=ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings"),
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
