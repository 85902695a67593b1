"""Marian (https://arxiv.org/abs/1804.00344), as it was trained for OPUS-MT."""

from typing import Any

from txtrain.errors import UserError
from txtrain.interop.axes import Flat
from txtrain.interop.families.bart import BARTS_PARTS, barts_rules
from txtrain.interop.family import Always, Config, Family, Field, Part
from txtrain.interop.keys import Keys, Nullable
from txtrain.model import EncoderDecoder


class OneVocabulary(Part):
    """The source and the target have the same tokens."""

    def read(self, config: Config) -> Flat:
        own, other = config.get("vocab_size"), config.get("decoder_vocab_size")
        if other not in (None, own):
            raise UserError(
                f"its decoder_vocab_size is {other}, and no axis expresses another one than vocab_size={own}"
            )
        return {}

    def write(self, flat: Flat) -> dict[str, Any]:
        return {}


class Marian(Family):
    """BART with fixed waves, and no norm of the embedding."""

    model_types = ("marian",)
    architecture = "MarianMTModel"
    model_class = EncoderDecoder
    ignored = r".*\.embed_positions\.weight"
    keys = Keys(
        {
            "vocab_size": 58101,
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
            "decoder_vocab_size": Nullable(int),
            "share_encoder_decoder_embeddings": True,
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
                "max_source_positions",
            }
        ),
    )
    parts = (
        *BARTS_PARTS,
        OneVocabulary(),
        Always({"encoding": "sinusoidal", "encoding.layout": "half"}),
        Field("embedding.shared", "share_encoder_decoder_embeddings"),
    )
    rules = tuple(barts_rules())
