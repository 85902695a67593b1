"""Which parameters an optimizer trains, and which of them decay."""

from typing import Any

from torch import nn

from txtrain.model.encoding.base import Encoding


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """All parameters that require a gradient, tied ones once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def decay_groups(model: nn.Module, parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """The parameters as a group that decays, the matrices, and a group that does not.

    Norms, biases and DoRA's magnitudes are vectors. Embeddings and what a positional encoding learns are looked up, not
    multiplied, and keep their scale; a head tied to an embedding is that embedding.
    """
    lookups = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.Embedding | Encoding)
        for parameter in module.parameters()
    }
    steady = {parameter for parameter in parameters if parameter.ndim < 2 or parameter in lookups}
    groups = [
        {"params": [p for p in parameters if p not in steady], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p in steady], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def fused(parameters: list[nn.Parameter]) -> bool:
    """Whether one kernel updates all parameters: wherever they have memory."""
    return not any(parameter.is_meta for parameter in parameters)
