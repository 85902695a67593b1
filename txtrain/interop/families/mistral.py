"""Mistral (https://arxiv.org/abs/2310.06825)."""

from typing import Any

from txtrain.interop.axes import Flat
from txtrain.interop.common import ROPE_KEYS, Windows
from txtrain.interop.families.llama import Llama
from txtrain.interop.family import Config, Part
from txtrain.interop.keys import Extra, Keys, Nullable


class Window(Part):
    """One window in all layers; files with `layer_types` have it in those of sliding attention, as Ministral has."""

    def read(self, config: Config) -> Flat:
        if "layer_types" in config:
            return Windows(always=True).read(config)
        return {"attention.window": config["sliding_window"]}

    def write(self, flat: Flat) -> dict[str, Any]:
        return {"sliding_window": flat["attention.window"]}


class Mistral(Llama):
    """Llama with a sliding window in all layers."""

    model_types = ("mistral",)
    architecture = "MistralForCausalLM"
    keys = Keys(
        {
            **ROPE_KEYS,
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": Nullable(int, 8),
            "head_dim": Nullable(int),
            "max_position_embeddings": 131072,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-06,
            "sliding_window": Nullable(int, 4096),
            "layer_types": Extra(list),
            "tie_word_embeddings": False,
        },
    )
    parts = (
        *(part for part in Llama.parts if getattr(part, "ours", None) not in ("attention.bias", "ffn.bias")),
        Window(),
    )
