"""Which parameters an optimizer trains, which of them decay, and which settings are none."""

from typing import Any

from torch import nn

from txtrain.model.encoding.base import Encoding
from txtrain.model.lora import adapters


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


def with_rates(model: nn.Module, groups: list[dict[str, Any]], lr: float) -> list[dict[str, Any]]:
    """The groups with their learning rate; where LoRA+ gives matrices B another, they are split off into a group."""
    ratios = {layer.lora_B: layer.b_lr_ratio for _, layer in adapters(model)}
    rated = []
    for group in groups:
        found = {ratios.get(parameter, 1.0) for parameter in group["params"]}
        for ratio in sorted(found, key=lambda ratio: (ratio != 1.0, ratio)):  # what reports one rate reports the first
            members = [parameter for parameter in group["params"] if ratios.get(parameter, 1.0) == ratio]
            rated.append(group | {"params": members, "lr": lr * ratio})
    return rated


def fused(parameters: list[nn.Parameter]) -> bool:
    """Whether one kernel updates all parameters: wherever they have memory."""
    return not any(parameter.is_meta for parameter in parameters)


def check_settings(*, betas: list[float] | tuple[float, float] = (0.0, 0.0), **numbers: float) -> tuple[float, float]:
    """Refuses what torch would, naming the override to type; returns the two betas."""
    for name, value in numbers.items():
        if value < 0:
            raise ValueError(f"optimizer.{name} is {value}: give 0 or more, such as optimizer.{name}={-value}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(
            f"optimizer.betas is {list(betas)}: give two numbers from 0 to below 1, such as optimizer.betas=[0.9,0.95]"
        )
    return betas[0], betas[1]
