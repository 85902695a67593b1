"""BART (https://arxiv.org/abs/1910.13461)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from txtrain.errors import UserError
from txtrain.interop.axes import Flat
from txtrain.interop.common import ACTIVATIONS
from txtrain.interop.families.bert import POST_NORM_WITH_BIASES
from txtrain.interop.family import Always, Config, Family, Field, Only, Part, look_up
from txtrain.interop.keys import Keys
from txtrain.interop.names import Rule, in_layers
from txtrain.model import EncoderDecoder


@dataclass(frozen=True)
class BothSides(Part):
    """One value that the encoder and the decoder have a key of their own for."""

    ours: str
    encoders: str
    decoders: str

    def read(self, config: Config) -> Flat:
        encoders, decoders = (look_up(config, key) for key in (self.encoders, self.decoders))
        if encoders != decoders:
            raise UserError(
                f"its {self.encoders} is {encoders} and its {self.decoders} {decoders}: both sides have one {self.ours}"
            )
        return {self.ours: encoders}

    def write(self, flat: Flat) -> dict[str, Any]:
        return {self.encoders: flat[self.ours], self.decoders: flat[self.ours]}


BARTS_PARTS: tuple[Part, ...] = (
    POST_NORM_WITH_BIASES,
    Always({"norm.eps": 1e-5, "head.bias": True}),
    Field("model.dim", "d_model"),
    Field("model.num_layers", "encoder_layers"),
    Field("model.num_decoder_layers", "decoder_layers"),
    BothSides("model.num_heads", "encoder_attention_heads", "decoder_attention_heads"),
    BothSides("model.ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
    Field("embedding.scale", "scale_embedding"),
    Field("embedding.tied", "tie_word_embeddings"),
    Field("ffn.activation", "activation_function", values=ACTIVATIONS),
    Only("is_encoder_decoder", (True,)),
)


def barts_rules() -> Iterable[Rule]:
    """Names of BART, all of which Marian has too, but for those that it has no weights of."""
    shared, encoder = "model.shared", "model.encoder.embed_tokens"
    either = (encoder, shared)  # a file of unshared vectors may have others under the second, which are not used
    yield Rule("encoder.embedding.tokens", encoder, read=either, given="decoder.embedding.tokens.weight")
    yield Rule("encoder.embedding.tokens", shared, read=either, module=encoder)
    yield Rule("decoder.embedding.tokens", "model.decoder.embed_tokens")
    yield Rule("decoder.head.linear.weight", "lm_head.weight")
    yield Rule("decoder.head.linear.bias", "final_logits_bias", leading=1, default=0.0)
    for side, last in (("encoder", 1), ("decoder", 2)):
        yield Rule(f"{side}.embedding.norm", f"model.{side}.layernorm_embedding")
        yield Rule(f"{side}.stack.encoding.table", f"model.{side}.embed_positions")
        names = {"ffn.up_proj": "fc1", "ffn.down_proj": "fc2", f"norm.norms.{last}": "final_layer_norm"}
        for number, (ours, theirs) in enumerate(
            (("attention", "self_attn"), ("cross_attention", "encoder_attn"))[:last]
        ):
            names |= {f"{ours}.{part}_proj": f"{theirs}.{part}_proj" for part in "qkv"}
            names |= {f"{ours}.o_proj": f"{theirs}.out_proj", f"norm.norms.{number}": f"{theirs}_layer_norm"}
        yield from in_layers(f"{side}.stack.blocks.{{layer}}", f"model.{side}.layers.{{layer}}", names)


class Bart(Family):
    """An encoder-decoder with learned positions, a normed embedding and post-norm."""

    model_types = ("bart",)
    architecture = "BartForConditionalGeneration"
    model_class = EncoderDecoder
    keys = Keys(
        {
            "vocab_size": 50265,
            "max_position_embeddings": 1024,
            "d_model": 1024,
            "encoder_layers": 12,
            "decoder_layers": 12,
            "encoder_attention_heads": 16,
            "decoder_attention_heads": 16,
            "encoder_ffn_dim": 4096,
            "decoder_ffn_dim": 4096,
            "activation_function": "gelu",
            "scale_embedding": False,
            "tie_word_embeddings": True,
            "is_encoder_decoder": True,
        },
        spellings={
            "num_attention_heads": "encoder_attention_heads",
            "hidden_size": "d_model",
            "num_hidden_layers": "encoder_layers",
        },
        neutral=frozenset(
            {
                "is_decoder",
                "add_bias_logits",
                "classif_dropout",
                "extra_pos_embeddings",
                "force_bos_token_to_be_generated",
                "save_step",
                "static_position_embeddings",
                "replacing_rate",
                "student_decoder_layers",
                "student_encoder_layers",
            }
        ),
    )
    parts = (
        *BARTS_PARTS,
        Always({"encoding": "learned", "encoding.offset": 2, "embedding.norm": True, "embedding.norm_eps": 1e-5}),
        Field("encoding.max_len", "max_position_embeddings"),
        Field("embedding.shared", "tie_word_embeddings"),
    )
    rules = tuple(barts_rules())
