"""T5 (https://arxiv.org/abs/1910.10683), versions 1.0 and 1.1."""

from collections.abc import Iterable
from typing import Any

from txtrain.errors import UserError
from txtrain.interop.axes import Flat
from txtrain.interop.common import ACTIVATIONS
from txtrain.interop.family import Always, Config, Family, Field, Only, Part, look_up
from txtrain.interop.keys import Extra, Keys, Nullable
from txtrain.interop.names import Rule, in_layers
from txtrain.model import EncoderDecoder

GATED = "gated-"


class FeedForwardKind(Part):
    """`feed_forward_proj`, such as relu or gated-gelu, which means gelu's approximation."""

    def read(self, config: Config) -> Flat:
        kind = look_up(config, "feed_forward_proj")
        name = "gelu_new" if kind == "gated-gelu" else kind.removeprefix(GATED)
        # What transformers makes of it stands in the files that it wrote, and counts there.
        said = config.get("dense_act_fn", name), config.get("is_gated_act", kind.startswith(GATED))
        if said != (name, kind.startswith(GATED)):
            raise UserError(f"its feed_forward_proj is {kind}, and its dense_act_fn and is_gated_act are {said}")
        if name not in ACTIVATIONS:
            raise UserError(f"its feed_forward_proj is {kind}, and txtrain knows {', '.join(ACTIVATIONS)}, also gated")
        return {"ffn": "geglu" if kind.startswith(GATED) else "gelu", "ffn.activation": ACTIVATIONS[name]}

    def write(self, flat: Flat) -> dict[str, Any]:
        ours = flat["ffn.activation"]
        theirs = next(theirs for theirs, known in ACTIVATIONS.items() if known == ours)
        return {"feed_forward_proj": f"{GATED}{theirs.removesuffix('_new')}" if flat["ffn"] == "geglu" else theirs}


class ScaledHead(Part):
    """Version 1.0 ties the head and scales its input; 1.1 does neither."""

    def read(self, config: Config) -> Flat:
        # Since its version 5, transformers says that all are tied, and has a key of its own for the scale.
        tied = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
        return {"embedding.tied": tied, "head.scale": look_up(config, "d_model") ** -0.5 if tied else 1.0}

    def write(self, flat: Flat) -> dict[str, Any]:
        return {"tie_word_embeddings": flat["embedding.tied"]}


def t5s_rules() -> Iterable[Rule]:
    """Names: sublayers are numbered, and the first layer has the table of all."""
    tables = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    yield Rule("encoder.embedding.tokens", "shared", read=tables, module="encoder.embed_tokens")
    yield Rule("decoder.embedding.tokens", "decoder.embed_tokens")
    yield Rule("decoder.head.linear", "lm_head", read=("lm_head", "shared"))
    for side, last in (("encoder", 1), ("decoder", 2)):
        yield Rule(f"{side}.stack.norm.final", f"{side}.final_layer_norm")
        yield Rule(f"{side}.stack.encoding.table", f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias")
        names = {f"norm.norms.{number}": f"{number}.layer_norm" for number in range(last + 1)}
        names |= {f"attention.{part}_proj": f"0.SelfAttention.{part}" for part in "qkvo"}
        names |= {f"cross_attention.{part}_proj": f"1.EncDecAttention.{part}" for part in "qkvo"}
        names |= {"ffn.gate_proj": f"{last}.DenseReluDense.wi_0", "ffn.down_proj": f"{last}.DenseReluDense.wo"}
        ours, theirs = f"{side}.stack.blocks.{{layer}}", f"{side}.block.{{layer}}.layer"
        yield from in_layers(ours, theirs, names)
        plain, gated = (f"{theirs}.{last}.DenseReluDense.{name}" for name in ("wi", "wi_1"))
        yield Rule(f"{ours}.ffn.up_proj", gated, given=f"{ours}.ffn.gate_proj.weight")
        yield Rule(f"{ours}.ffn.up_proj", plain)


class T5(Family):
    """An encoder-decoder with bucketed biases, pre-norm with RMSNorm, and attention that is not scaled."""

    model_types = ("t5",)
    architecture = "T5ForConditionalGeneration"
    model_class = EncoderDecoder
    prefix = ""
    ignored = r"decoder\..*\.EncDecAttention\.relative_attention_bias\.weight"  # in old files, and never read
    max_len = None
    keys = Keys(
        {
            "vocab_size": 32128,
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 2048,
            "num_layers": 6,
            "num_decoder_layers": Nullable(int),
            "num_heads": 8,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-06,
            "feed_forward_proj": "relu",
            "is_encoder_decoder": True,
            "is_decoder": False,
            "tie_word_embeddings": Extra(bool),
            "scale_decoder_outputs": Extra(bool),
            "dense_act_fn": Extra(str),
            "is_gated_act": Extra(bool),
        },
        spellings={
            "hidden_size": "d_model",
            "num_attention_heads": "num_heads",
            "num_hidden_layers": "num_layers",
            "head_dim": "d_kv",
        },
        neutral=frozenset({"n_positions"}),
    )
    parts = (
        Always({"encoding": "t5", "norm": "pre", "norm.layer": "rmsnorm", "attention.scale": 1.0}),
        Field("model.dim", "d_model"),
        Field("model.num_layers", "num_layers"),
        Field("model.num_decoder_layers", "num_decoder_layers"),
        Field("model.num_heads", "num_heads"),
        Field("model.head_dim", "d_kv"),
        Field("model.ffn_dim", "d_ff"),
        Field("norm.eps", "layer_norm_epsilon"),
        Field("encoding.num_buckets", "relative_attention_num_buckets"),
        Field("encoding.max_distance", "relative_attention_max_distance"),
        FeedForwardKind(),
        ScaledHead(),
        Only("is_encoder_decoder", (True,)),
        Only("is_decoder"),
    )
    rules = tuple(t5s_rules())

    def complete(self, config: Config) -> dict[str, Any]:
        completed = super().complete(config)
        if completed["num_decoder_layers"] is None:  # as many as the encoder has by the main name of that key
            completed["num_decoder_layers"] = config.get("num_layers", self.keys.defaults["num_layers"])
        return completed
