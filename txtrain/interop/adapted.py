"""A model folder and an adapter of it in PEFT's format, read as one model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from torch import nn

from txtrain.config import instantiate
from txtrain.errors import UserError
from txtrain.interop import label_head
from txtrain.interop.folder import Imported, is_folder, read_folder
from txtrain.interop.peft import read_adapter, read_tensors
from txtrain.interop.peft_config import CONFIG, PRINCIPAL, read_config, start_of
from txtrain.interop.weights import Weights, WithHead
from txtrain.model.lora.exchange import Change, put, remove
from txtrain.model.lora.merging import adapters, check_mergeable, tied

TABLE, HEAD = "embedding.tokens.weight", "head.linear.weight"


@dataclass(frozen=True, kw_only=True)
class Adapted(Imported):
    """A model folder and an adapter of it, which is merged into the weights; it may bring a head of its own.

    Args:
        adapter: the adapter's folder.
        untied: whether it changes one of two matrices that the base has tied, so that merging makes two of one.
    """

    adapter: Path
    untied: bool = False

    def with_matrices_apart(self) -> "Adapted":
        """Itself, but with a matrix each for head and embedding if the adapter changes only one of these."""
        model = self._new(new_model(self))
        if getattr(getattr(model, "head", None), "scores", None) != "tokens" or not tied(model, self._read(model, ())):
            return self
        if (start := start_of(read_config(self.adapter))) in PRINCIPAL:
            raise UserError(
                f"{self.adapter} has init_lora_weights={start} on one of two matrices that its base has tied, of which "
                "PEFT changes both: merge it in PEFT and name the merged folder"
            )
        embedding = self.axes["embedding"] | {"tied": False}
        return replace(self, axes=self.axes | {"embedding": embedding}, untied=True)

    def check(self, build_model: Callable[[], nn.Module], new: Sequence[str] = ()) -> None:
        super().check(build_model, new)
        model = self._new(build_model)
        self._check_mergeable(model, self._read(model, new))

    def _check_mergeable(self, model: nn.Module, names: Iterable[str]) -> None:
        try:
            check_mergeable(model, names)
        except ValueError as error:
            raise UserError(f"{self.adapter}: {error}") from error

    def _read(self, model: nn.Module, new: Sequence[str]) -> dict[str, Change]:
        return read_adapter(self.adapter, model, self.family, heads=self.axes["model"]["num_heads"], new=new)

    def _fill(self, model: nn.Module, weights: Weights | WithHead, new: Sequence[str]) -> None:
        head = read_tensors(self.adapter)[1]
        if head and "head" not in new:
            weights = WithHead(weights, head, self.family)
            label_head.check_head(model, self.family, head, weights, self.adapter)
        if self.untied:
            own = dict(model.named_parameters())
            table, scores = (self.family.names.find(name, own) for name in (TABLE, HEAD))
            assert table and scores, "only such models are untied"
            stored = next(name for name in table.read if name in weights)
            weights = WithHead(weights, {scores.read[0]: weights[stored].clone()}, self.family)
        super()._fill(model, weights, new)

    def adapt(self, model: nn.Module, new: Sequence[str] = ()) -> None:
        """Gives a model the weights and puts the adapter on it, not merged."""
        super().fill(model, new)
        put(model, self._read(model, new))

    def fill(self, model: nn.Module, new: Sequence[str] = ()) -> None:
        self.adapt(model, new)
        self._check_mergeable(model, [name for name, _ in adapters(model)])
        merged = {name: layer.merged_weight().to(layer.weight.dtype) for name, layer in adapters(model)}
        remove(model)
        for name, weight in merged.items():
            layer = model.get_submodule(name)
            layer.weight = nn.Parameter(weight.detach())
            layer.requires_grad_()  # its bias too, which the adapter froze


def read_adapted(path: str | Path) -> Adapted:
    """Understands an adapter's folder and that of its base.

    Raises:
        UserError: it is none, or its base is no local folder.
    """
    path = Path(path).expanduser().absolute()
    config = read_config(path)
    base = config.get("base_model_name_or_path")
    if not base or not is_folder(base):
        raise UserError(
            f"{path} is an adapter of {base}, which is no folder here: put the path of its model's folder into "
            f"base_model_name_or_path in {CONFIG}"
        )
    imported = read_folder(base)
    known = {field.name: getattr(imported, field.name) for field in fields(imported)}
    if head := read_tensors(path)[1]:
        known |= label_head.with_labels(imported, config, head, path)
    return Adapted(adapter=path, **known).with_matrices_apart()


def new_model(imported: Imported) -> partial[nn.Module]:
    """Makes the model of a folder, with no weights of it."""
    parts = {group: instantiate(node, group) for group, node in imported.axes.items()}
    return partial(imported.family.model_class, shape=parts.pop("model"), **imported.sizes, **parts)
