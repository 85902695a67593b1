"""BERT (https://arxiv.org/abs/1810.04805)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from txtrain.errors import UserError
from txtrain.interop.axes import Flat, differences
from txtrain.interop.common import ACTIVATIONS, SIZES, TextEncoder
from txtrain.interop.family import Always, Config, Field, Only, Part
from txtrain.interop.keys import Extra, Keys
from txtrain.interop.names import Rule, in_layers

POST_NORM_WITH_BIASES = Always(
    {
        "norm": "post",
        "norm.layer": "layernorm",
        "norm.bias": True,
        "ffn": "gelu",
        "ffn.bias": True,
        "attention.bias": True,
    }
)


@dataclass(frozen=True)
class MaskedHead(Part):
    """The head of a masked language model, or none: the class that the weights were saved from says which.

    Args:
        body, masked: that class without a head and with one.
        activation: the key of the head's nonlinearity; None: gelu.
        eps: the key of its LayerNorm's epsilon; None: 1e-12.
        labelling: classes with a head that scores labels, and what each means.
    """

    body: str
    masked: tuple[str, ...]
    activation: str | None = None
    eps: str | None = None
    labelling: Mapping[str, Flat] = field(default_factory=dict)

    def read(self, config: Config) -> Flat:
        name = (config.get("architectures") or [self.body])[0]
        if name == self.body:
            return {"head": "none"}
        if name in self.labelling:
            return dict(self.labelling[name])
        if name not in self.masked:
            known = ", ".join((self.body, *self.masked, *self.labelling))
            raise UserError(f"its architectures say {name}, and txtrain knows {known}")
        flat: Flat = {"head": "transform", "head.bias": True, "head.activation": "gelu", "head.norm_eps": 1e-12}
        if self.activation:
            flat |= Field("head.activation", self.activation, "gelu", ACTIVATIONS).read(config)
        if self.eps:
            flat |= Field("head.norm_eps", self.eps, 1e-12).read(config)
        return flat

    def write(self, flat: Flat) -> dict[str, list[str]]:
        labelling = [name for name, head in self.labelling.items() if not differences(head, flat)]
        return {"architectures": labelling[:1] or [self.body if flat["head"] == "none" else self.masked[0]]}


def labelling_classes(family: str, activation: str) -> dict[str, Flat]:
    """The classes whose head scores labels, of a text by its first token, transformed, or of each token."""
    return {
        f"{family}ForSequenceClassification": {
            "head": "class_token",
            "head.pool": "first",
            "head.transform": activation,
        },
        f"{family}ForTokenClassification": {"head": "labels"},
    }


def labelling_rules(transform: str, scores: str, tags: str) -> Iterable[Rule]:
    """Names of their heads: the transform, the scores after it, and those of tokens."""
    masked, own = "head.norm.weight", "head.transform.weight"
    yield Rule("head.transform", transform, without=masked)
    yield Rule("head.linear", scores, given=own, without=masked)
    yield Rule("head.linear", tags, without=masked)


def berts_body(prefix: str) -> Iterable[Rule]:
    """Names of all but the head."""
    yield Rule("embedding.tokens", f"{prefix}embeddings.word_embeddings")
    yield Rule("embedding.types", f"{prefix}embeddings.token_type_embeddings")
    yield Rule("embedding.norm", f"{prefix}embeddings.LayerNorm")
    yield Rule("stack.encoding.table", f"{prefix}embeddings.position_embeddings")
    yield from in_layers(
        "stack.blocks.{layer}",
        f"{prefix}encoder.layer.{{layer}}",
        {
            "attention.q_proj": "attention.self.query",
            "attention.k_proj": "attention.self.key",
            "attention.v_proj": "attention.self.value",
            "attention.o_proj": "attention.output.dense",
            "norm.norms.0": "attention.output.LayerNorm",
            "ffn.up_proj": "intermediate.dense",
            "ffn.down_proj": "output.dense",
            "norm.norms.1": "output.LayerNorm",
        },
    )


def bias_of_scores(head: str) -> Iterable[Rule]:
    """The bias is the head's own if it is tied to the embedding, else its linear layer's."""
    own, layers = f"{head}.bias", f"{head}.decoder.bias"
    yield Rule("head.linear.bias", layers, read=(layers, own), given="head.linear.weight")
    yield Rule("head.linear.bias", own, read=(layers, own))


BERTS_PARTS: tuple[Part, ...] = (
    POST_NORM_WITH_BIASES,
    Always({"encoding": "learned", "embedding.norm": True}),
    *SIZES,
    Field("norm.eps", "layer_norm_eps"),
    Field("embedding.norm_eps", "layer_norm_eps"),
    Field("embedding.token_types", "type_vocab_size"),
    Field("embedding.tied", "tie_word_embeddings"),
    Field("ffn.activation", "hidden_act", values=ACTIVATIONS),
    Only("is_decoder"),
    Only("add_cross_attention"),
    Only("position_embedding_type", ("absolute", None)),
)


class Bert(TextEncoder):
    """An encoder with learned positions, token types and post-norm; its head transforms before it scores."""

    model_types = ("bert",)
    architecture = "BertForMaskedLM"
    prefix = "bert."
    ignored = r".*\.pooler\..*|.*\.position_ids|cls\.seq_relationship\..*"
    keys = Keys(
        {
            "vocab_size": 30522,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_act": "gelu",
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
            "is_decoder": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
            "position_embedding_type": Extra(str),
        },
        neutral=frozenset(
            {
                "directionality",
                "pooler_fc_size",
                "pooler_num_attention_heads",
                "pooler_num_fc_layers",
                "pooler_size_per_head",
                "pooler_type",
            }
        ),
    )
    parts = (
        *BERTS_PARTS,
        Field("encoding.max_len", "max_position_embeddings"),
        MaskedHead(
            "BertModel",
            ("BertForMaskedLM", "BertForPreTraining"),
            "hidden_act",
            "layer_norm_eps",
            labelling_classes("Bert", "tanh"),
        ),
    )
    rules = (
        *berts_body("bert."),
        *labelling_rules("bert.pooler.dense", "classifier", "classifier"),
        Rule("head.transform", "cls.predictions.transform.dense"),
        Rule("head.norm", "cls.predictions.transform.LayerNorm"),
        Rule("head.linear.weight", "cls.predictions.decoder.weight"),
        *bias_of_scores("cls.predictions"),
    )
