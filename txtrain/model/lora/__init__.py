"""Low-rank adapters on the layers of a built model: put on, merged into its weights, exchanged and composed."""

from txtrain.model.lora.layers import Adapted, DoRA, DoRAEmbedding, DoRALinear, LoRAEmbedding, LoRALinear
from txtrain.model.lora.merging import adapters, check_mergeable, merge, parameter_counts, unmerge
from txtrain.model.lora.settings import LoRA

__all__ = [
    "Adapted",
    "DoRA",
    "DoRAEmbedding",
    "DoRALinear",
    "LoRA",
    "LoRAEmbedding",
    "LoRALinear",
    "adapters",
    "check_mergeable",
    "merge",
    "parameter_counts",
    "unmerge",
]
