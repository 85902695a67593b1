"""DistilBERT (https://arxiv.org/abs/1910.01108)."""

from txtrain.interop.common import ACTIVATIONS, TextEncoder
from txtrain.interop.families.bert import POST_NORM_WITH_BIASES, MaskedHead, labelling_classes, labelling_rules
from txtrain.interop.family import Always, Field
from txtrain.interop.keys import Keys
from txtrain.interop.names import Rule, in_layers


class DistilBert(TextEncoder):
    """BERT without token types. Positions that are fixed waves are in its files as a table, and are read as one."""

    model_types = ("distilbert",)
    architecture = "DistilBertForMaskedLM"
    prefix = "distilbert."
    keys = Keys(
        {
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "n_layers": 6,
            "n_heads": 12,
            "dim": 768,
            "hidden_dim": 3072,
            "activation": "gelu",
            "tie_word_embeddings": True,
        },
        spellings={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
        neutral=frozenset({"sinusoidal_pos_embds", "tie_weights_"}),
    )
    parts = (
        POST_NORM_WITH_BIASES,
        Always({"encoding": "learned", "embedding.norm": True, "embedding.norm_eps": 1e-12, "norm.eps": 1e-12}),
        Field("model.dim", "dim"),
        Field("model.num_layers", "n_layers"),
        Field("model.num_heads", "n_heads"),
        Field("model.ffn_dim", "hidden_dim"),
        Field("encoding.max_len", "max_position_embeddings"),
        Field("ffn.activation", "activation", values=ACTIVATIONS),
        Field("embedding.tied", "tie_word_embeddings"),
        MaskedHead(
            "DistilBertModel",
            ("DistilBertForMaskedLM",),
            "activation",
            labelling=labelling_classes("DistilBert", "relu"),
        ),
    )
    rules = (
        Rule("embedding.tokens", "distilbert.embeddings.word_embeddings"),
        Rule("embedding.norm", "distilbert.embeddings.LayerNorm"),
        Rule("stack.encoding.table", "distilbert.embeddings.position_embeddings"),
        *in_layers(
            "stack.blocks.{layer}",
            "distilbert.transformer.layer.{layer}",
            {
                "attention.q_proj": "attention.q_lin",
                "attention.k_proj": "attention.k_lin",
                "attention.v_proj": "attention.v_lin",
                "attention.o_proj": "attention.out_lin",
                "norm.norms.0": "sa_layer_norm",
                "ffn.up_proj": "ffn.lin1",
                "ffn.down_proj": "ffn.lin2",
                "norm.norms.1": "output_layer_norm",
            },
        ),
        *labelling_rules("pre_classifier", "classifier", "classifier"),
        Rule("head.transform", "vocab_transform"),
        Rule("head.norm", "vocab_layer_norm"),
        Rule("head.linear", "vocab_projector"),
    )
