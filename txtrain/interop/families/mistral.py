"""Mistral (https://arxiv.org/abs/2310.06825)."""

from txtrain.interop.families.llama import Llama
from txtrain.interop.family import Field


class Mistral(Llama):
    """Llama with a sliding window in all layers."""

    model_types = ("mistral",)
    architecture = "MistralForCausalLM"
    parts = (
        *(part for part in Llama.parts if getattr(part, "ours", None) not in ("attention.bias", "ffn.bias")),
        Field("attention.window", "sliding_window", 4096),
    )
