"""Marian (https://arxiv.org/abs/1804.00344), as it was trained for OPUS-MT."""

from typing import Any

from txtrain.errors import UserError
from txtrain.interop.axes import Flat
from txtrain.interop.families.bart import BARTS_PARTS, barts_rules
from txtrain.interop.family import Always, Config, Family, Field, Part
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
    parts = (
        *BARTS_PARTS,
        OneVocabulary(),
        Always({"encoding": "sinusoidal", "encoding.layout": "half"}),
        Field("embedding.shared", "share_encoder_decoder_embeddings", True),
    )
    rules = tuple(barts_rules())
