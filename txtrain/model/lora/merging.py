"""The adapters of a model: finding them, and merging them into its weights."""

from collections import Counter
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from txtrain.model.lora.layers import Adapted, LoRALinear


def adapters(model: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Names and layers with an adapter."""
    return ((name, part) for name, part in model.named_modules() if isinstance(part, Adapted))


def merge(model: nn.Module) -> None:
    """Puts all adapters into the weights; refused where another layer uses a weight too, which would change with it."""
    check_mergeable(model)
    for _, layer in adapters(model):
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Takes all adapters out of the weights again, exactly."""
    for _, layer in adapters(model):
        layer.unmerge()


def check_mergeable(model: nn.Module, names: Iterable[str] | None = None) -> None:
    """Refuses adapters, those there or those to come of layers of these names, on a weight that another layer uses."""
    for name in tied(model, [name for name, _ in adapters(model)] if names is None else names):
        raise ValueError(
            f"the adapter of {name} cannot be merged, its weight is tied to another layer's: "
            "train with embedding.tied=false (or embedding.shared=false), or leave it out of lora.targets"
        )


def tied(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the layers of these names whose weight another layer uses too."""
    owners: Counter[Tensor] = Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
    return [name for name in names if owners[model.get_parameter(f"{name}.weight")] > 1]


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many parameters there are, and how many of them train.

    Tied ones count once, sharded ones whole, and those in 4 bits as many as they were.
    """
    matrices = {
        layer.weight: layer.in_features * layer.out_features
        for _, layer in adapters(model)
        if isinstance(layer, LoRALinear)
    }
    # DeepSpeed leaves an empty tensor where a shard was cut off, and notes how large the whole is.
    sizes = [(matrices.get(p, getattr(p, "ds_numel", p.numel())), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
