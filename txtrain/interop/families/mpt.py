"""MPT (https://www.databricks.com/blog/mpt-7b)."""

from txtrain.interop.common import QKV
from txtrain.interop.family import Always, Family, Field, Only
from txtrain.interop.keys import Keys, Nullable
from txtrain.interop.names import Rule, in_layers


class MPT(Family):
    """ALiBi, LayerNorm and linear layers without biases."""

    model_types = ("mpt",)
    architecture = "MptForCausalLM"
    prefix = "transformer."
    max_len = "max_seq_len"
    keys = Keys(
        {
            "vocab_size": 50368,
            "d_model": 2048,
            "n_heads": 16,
            "n_layers": 24,
            "expansion_ratio": 4,
            "max_seq_len": 2048,
            "layer_norm_epsilon": 1e-05,
            "attn_config": Nullable(dict),
            "logit_scale": Nullable(object),
            "no_bias": True,
            "tie_word_embeddings": True,
        },
        spellings={"num_attention_heads": "n_heads", "hidden_size": "d_model", "num_hidden_layers": "n_layers"},
        neutral=frozenset(
            {"embedding_fraction", "init_config", "init_device", "learned_pos_emb", "norm_type", "verbose"}
        ),
    )
    parts = (
        Always({"encoding": "alibi", "norm": "pre", "norm.layer": "layernorm"}),
        Always({"ffn": "gelu", "ffn.activation": "gelu", "model.ffn_dim": None}),
        Field("model.dim", "d_model"),
        Field("model.num_layers", "n_layers"),
        Field("model.num_heads", "n_heads"),
        # transformers takes 8 whatever the config says; the authors' code, which trained the models, takes this.
        Field("encoding.max_exponent", "attn_config.alibi_bias_max", 8, to_ours=float, to_theirs=int),
        Field("attention.scale", "attn_config.softmax_scale", None),
        Field("norm.eps", "layer_norm_epsilon"),
        Field("embedding.tied", "tie_word_embeddings"),
        Only("attn_config.alibi", (True,)),
        Only("attn_config.clip_qkv", (None,)),
        Only("attn_config.qk_ln"),
        Only("attn_config.prefix_lm"),
        Only("attn_config.attn_type", ("multihead_attention",)),
        Only("expansion_ratio", (4,)),
        Only("no_bias", (True,)),
        Only("logit_scale", (None,)),
    )
    rules = (
        Rule("embedding.tokens", "transformer.wte"),
        Rule("stack.norm.final", "transformer.norm_f"),
        Rule("head.linear", "lm_head"),
        *in_layers(
            "stack.blocks.{layer}",
            "transformer.blocks.{layer}",
            {
                QKV: "attn.Wqkv",
                "attention.o_proj": "attn.out_proj",
                "ffn.up_proj": "ffn.up_proj",
                "ffn.down_proj": "ffn.down_proj",
                "norm.norms.0": "norm_1",
                "norm.norms.1": "norm_2",
            },
        ),
    )
