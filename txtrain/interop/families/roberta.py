"""RoBERTa (https://arxiv.org/abs/1907.11692)."""

from typing import Any

from txtrain.interop.axes import Flat
from txtrain.interop.common import TextEncoder
from txtrain.interop.families.bert import (
    BERTS_PARTS,
    MaskedHead,
    berts_body,
    bias_of_scores,
    labelling_classes,
    labelling_rules,
)
from txtrain.interop.family import Config, Part, look_up
from txtrain.interop.keys import Extra, Keys
from txtrain.interop.names import Rule


class PositionsAfterPadding(Part):
    """Position 0 is the row after that of the padding token's number."""

    def read(self, config: Config) -> Flat:
        offset = look_up(config, "pad_token_id", 1) + 1
        return {"encoding.offset": offset, "encoding.max_len": look_up(config, "max_position_embeddings") - offset}

    def write(self, flat: Flat) -> dict[str, Any]:
        offset, longest = flat.get("encoding.offset") or 0, flat.get("encoding.max_len") or 0
        return {"pad_token_id": offset - 1, "max_position_embeddings": longest + offset}


class Roberta(TextEncoder):
    """BERT with positions that count real tokens only: where padding comes first, the caller gives them."""

    model_types = ("roberta",)
    architecture = "RobertaForMaskedLM"
    prefix = "roberta."
    ignored = r".*\.pooler\..*|.*\.position_ids"
    keys = Keys(
        {
            "vocab_size": 50265,
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
            "pad_token_id": 1,
        },
    )
    parts = (
        *BERTS_PARTS,
        PositionsAfterPadding(),
        MaskedHead(
            "RobertaModel",
            ("RobertaForMaskedLM",),
            eps="layer_norm_eps",
            labelling=labelling_classes("Roberta", "tanh"),
        ),
    )
    rules = (
        *berts_body("roberta."),
        *labelling_rules("classifier.dense", "classifier.out_proj", "classifier"),
        Rule("head.transform", "lm_head.dense"),
        Rule("head.norm", "lm_head.layer_norm"),
        Rule("head.linear.weight", "lm_head.decoder.weight"),
        *bias_of_scores("lm_head"),
    )

    def longest(self, config: Config) -> int:
        return int(PositionsAfterPadding().read(config)["encoding.max_len"])
