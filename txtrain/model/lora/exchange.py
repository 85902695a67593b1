"""Adapters apart from their model: taken, put on, removed, composed, and kept under names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from txtrain.model.lora.layers import Adapted, DoRA
from txtrain.model.lora.merging import adapters
from txtrain.model.lora.settings import LoRA, adapted_class


@dataclass(frozen=True, kw_only=True)
class Change:
    """The adapter of one layer: s · B A, with A (r, in) and B (out, r); for DoRA also m (out,)."""

    low: Tensor
    high: Tensor
    scale: float
    magnitude: Tensor | None = None
    dropout: float = 0.0


Adapter = Mapping[str, Change]
"""The changes of a model's layers, by their names."""


def taken(model: nn.Module) -> dict[str, Change]:
    """The adapters of a model, as changes of the weights that they were put on.

    What PiSSA and OLoRA have taken out of a weight is given back by a change of twice the rank: B A - B₀ A₀.
    """
    return {name: _change(layer) for name, layer in adapters(model)}


def put(model: nn.Module, adapter: Adapter) -> None:
    """Puts adapters on layers that have none; their tensors become the model's, and train if it is trained."""
    for name, change in adapter.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Embedding), f"{name} is no layer that takes an adapter"
        new_layer = adapted_class(layer, "lora" if change.magnitude is None else "dora")
        adapted = new_layer(layer, rank=len(change.low), scale=change.scale, dropout=change.dropout)
        adapted.lora_A, adapted.lora_B = nn.Parameter(change.low), nn.Parameter(change.high)
        if change.magnitude is not None:
            adapted.lora_magnitude = nn.Parameter(change.magnitude)
        _replace(model, name, adapted)


def remove(model: nn.Module) -> dict[str, Change]:
    """Takes the adapters off a model, and returns them; the layers have their own weights again.

    Raises:
        ValueError: weights are in 4 bits, which a layer without an adapter cannot use.
    """
    found = taken(model)
    for name, layer in list(adapters(model)):
        if not layer.weight.is_floating_point():
            raise ValueError(f"the weight of {name} is in 4 bits: take adapters off a model before it is quantised")
        size_out, size_in = layer.matrix.shape
        plain: nn.Linear | nn.Embedding
        if isinstance(layer, nn.Embedding):
            plain = nn.Embedding(size_in, size_out, device="meta")
        else:
            plain = nn.Linear(size_in, size_out, bias=layer.bias is not None, device="meta")
            plain.bias = cast(nn.Parameter, layer.bias)
        if hasattr(layer, "lora_A0"):
            layer.weight.data = (layer.weight + layer.change(layer.lora_A0, layer.lora_B0)).to(layer.weight.dtype)
        plain.weight = layer.weight
        _replace(model, name, plain)
    return found


def composed(parts: Mapping[str, tuple[Adapter, float]]) -> dict[str, Change]:
    """One adapter that changes each weight by the weighted sum of what several do: their ranks side by side.

    Args:
        parts: adapters and their weights, by name.

    Raises:
        ValueError: one is of DoRA, whose factor belongs to one adapter.
    """
    result: dict[str, list[Change]] = {}
    for called, (adapter, weight) in parts.items():
        for name, change in adapter.items():
            if change.magnitude is not None:
                raise ValueError(f"adapter {called} is of DoRA, which acts alone and in full: activate it by itself")
            scaled = Change(low=change.low, high=weight * change.scale * change.high, scale=1.0)
            result.setdefault(name, []).append(scaled)
    return {
        name: Change(
            low=torch.cat([change.low for change in changes]),
            high=torch.cat([change.high for change in changes], dim=1),
            scale=1.0,
        )
        for name, changes in result.items()
    }


class NamedAdapters:
    """Several adapters of one model, of which one is active, several are with weights, or none is.

    Args:
        model: with or without an adapter, which is then called `default` and active.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.held: dict[str, Adapter] = {}
        if any(adapters(model)):
            self.held["default"] = remove(model)
            self.activate("default")

    def add(self, name: str, adapter: Adapter | LoRA) -> None:
        """Holds another adapter, or a new one as the settings say; what is active stays so."""
        if isinstance(adapter, LoRA):
            if not adapter.keeps_base:
                raise ValueError(f"adapter {name} would change the weights under the others: use init=kaiming")
            active = remove(self.model)
            adapter.apply(self.model, adapt_only=True)
            adapter = remove(self.model)
            put(self.model, active)
        self.held[name] = adapter

    def activate(self, *names: str, **weights: float) -> None:
        """Puts on one adapter, or several: `activate("one")`, `activate(one=0.7, other=0.3)`, or none of them.

        One that is active alone and in full can be trained; of several, a sum is made.
        """
        wanted = dict.fromkeys(names, 1.0) | weights
        if unknown := wanted.keys() - self.held.keys():
            raise ValueError(f"there is no adapter {min(unknown)}: there are {', '.join(self.held) or 'none'}")
        if list(wanted.values()) == [1.0]:
            active: Adapter = self.held[next(iter(wanted))]
        else:
            active = composed({name: (self.held[name], weight) for name, weight in wanted.items()})
        remove(self.model)
        put(self.model, active)


def _change(layer: Adapted) -> Change:
    low, high = layer.lora_A.data, layer.lora_B.data
    if hasattr(layer, "lora_A0"):
        low, high = torch.cat([low, layer.lora_A0.data]), torch.cat([high, -layer.lora_B0.data], dim=1)
    magnitude = layer.lora_magnitude.data if isinstance(layer, DoRA) else None
    return Change(low=low, high=high, scale=layer.scale, magnitude=magnitude, dropout=layer.dropout)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
