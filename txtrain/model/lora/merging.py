"""The adapters of a model: finding them, and merging them into its weights."""

from collections import Counter
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from txtrain.model.lora.layers import Adapted


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
    owners: Counter[Tensor] = Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
    for name in [name for name, _ in adapters(model)] if names is None else names:
        if owners[model.get_parameter(f"{name}.weight")] > 1:
            raise ValueError(
                f"the adapter of {name} cannot be merged, its weight is tied to another layer's: "
                "train with embedding.tied=false, or leave it out of lora.targets"
            )


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many parameters there are, and how many of them train; tied ones count once, sharded ones whole."""
    # DeepSpeed leaves an empty tensor where a shard was cut off, and notes how large the whole is.
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
