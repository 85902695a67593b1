"""The weights of a folder, tensor by tensor, out of memory-mapped files."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from txtrain.errors import UserError
from txtrain.interop.family import Family
from txtrain.interop.names import Place
from txtrain.model.finite import is_finite

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Weights(Mapping[str, Tensor]):
    """Tensors by name. They are views of the files, which processes on one machine share, until they are changed.

    Args:
        folder: with `model.safetensors`, or shards and their index.
        prefix: of names, which files may leave out.
    """

    def __init__(self, folder: Path, *, prefix: str = "") -> None:
        self._folder = folder
        self._file = ""  # that is open, and then it
        self._opened: Any = None
        self._prefix = prefix
        if (folder / INDEX).is_file():
            try:
                self._places: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
                if not all(isinstance(name, str) for name in dict.values(self._places)):
                    raise TypeError("weight_map names no files")
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(f"{folder / INDEX} cannot be read ({error!r}): restore it") from error
        elif (folder / SINGLE).is_file():
            self._places = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        else:
            other = sorted(path.name for path in folder.glob("*.bin"))
            got = f"only {other[0]}, which can run code" if other else "none"
            raise UserError(f"{folder} needs {SINGLE} or {INDEX}, and has {got}: put the safetensors files there")
        self._stored = {_renamed(name): name for name in self._places}
        self._places = {_renamed(name): file for name, file in self._places.items()}
        for name in sorted(set(self._places.values())):
            if not (folder / name).is_file():
                raise UserError(f"{folder} lacks {name}, which its {INDEX} names: put this shard there")

    def _open(self, name: str) -> Any:
        if name != self._file:
            self._file, self._opened = "", None  # what has been read of the last one is no longer in memory
            try:
                self._opened = safe_open(self._folder / name, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{self._folder / name} cannot be read ({error}): restore it") from error
            self._file = name
        return self._opened

    def file(self, *names: str) -> str:
        """The file in which the first is that is there; none is ""."""
        return next((self._places[known] for name in names if (known := self._name(name))), "")

    def _name(self, name: str) -> str | None:
        bare = name.removeprefix(self._prefix)
        return next((known for known in (name, bare, self._prefix + name) if known in self._places), None)

    def __getitem__(self, name: str) -> Tensor:
        known = self._name(name)
        if known is None:
            raise KeyError(name)
        try:
            return self._open(self._places[known]).get_tensor(self._stored[known])
        except SafetensorError as error:
            raise UserError(f"{self._folder / self._places[known]} lacks {known}: restore it") from error

    def __contains__(self, name: object) -> bool:
        return self._name(str(name)) is not None

    def __iter__(self) -> Iterator[str]:
        """Names with their prefix."""
        bare = not any(name.startswith(self._prefix) for name in self._places)
        return (f"{self._prefix}{name}" if bare and "lm_head" not in name else name for name in self._places)

    def __len__(self) -> int:
        return len(self._places)


class Shapes(Weights):
    """The same without values: tensors on the meta device."""

    def __getitem__(self, name: str) -> Tensor:
        known = self._name(name)
        if known is None:
            raise KeyError(name)
        try:
            shape = self._open(self._places[known]).get_slice(self._stored[known]).get_shape()
        except SafetensorError as error:
            raise UserError(f"{self._folder / self._places[known]} lacks {known}: restore it") from error
        return torch.empty(shape, device="meta")


class WithHead(Mapping[str, Tensor]):
    """The weights of a folder with the head of an adapter in place of its own.

    Args:
        body: the folder's.
        head: the adapter's, which count before the folder's.
        family: says how the names of heads begin; those of the folder that no model asks for are not listed.
    """

    def __init__(self, body: "Weights | WithHead", head: Mapping[str, Tensor], family: Family) -> None:
        self._body, self._head = body, head
        self._heads = tuple(family.names.of_part("head"))

    def file(self, *names: str) -> str:
        """The folder's file with the first of these names that is there; "" if it has none."""
        return self._body.file(*names)

    def __getitem__(self, name: str) -> Tensor:
        return self._head[name] if name in self._head else self._body[name]

    def __contains__(self, name: object) -> bool:
        return name in self._head or name in self._body

    def __iter__(self) -> Iterator[str]:
        yield from self._head
        yield from (name for name in self._body if not name.startswith(self._heads))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _renamed(name: str) -> str:
    """Files that were made from TensorFlow's call a LayerNorm's weight and bias gamma and beta."""
    return re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda match: {"gamma": "weight", "beta": "bias"}[match[0]], name)


def fill(
    model: nn.Module, weights: Weights | WithHead, family: Family, *, heads: int, where: str, new: Sequence[str] = ()
) -> None:
    """Gives a model, which may have no memory yet (device meta), the weights of a folder.

    A weight of the type that the model wants, and stored as it has it, stays in the mapped file.

    Args:
        model: ours.
        weights: of the folder.
        family: says where they are.
        heads: query heads of a layer.
        where: the folder, for messages.
        new: parts of the model that are not to be filled.

    Raises:
        UserError: the folder lacks a weight, has one too many, or one of another shape.
    """
    names, taken = family.names, set[tuple[str, int]]()
    own = dict(model.named_parameters(remove_duplicate=False))
    places, first = dict[str, Place](), dict[nn.Parameter, str]()
    for name, parameter in own.items():
        if name.partition(".")[0] in new:
            continue
        place = names.find(name, own)
        if place is None:
            raise UserError(f"{where}: {family.model_types[0]} has no weight like {name}, which the axes ask for")
        places[name] = place
        first.setdefault(parameter, name)  # of a weight that is used twice
    filled = dict[nn.Parameter, nn.Parameter]()
    # File by file, since one that is done with takes no memory.
    for parameter, name in sorted(first.items(), key=lambda item: weights.file(*places[item[1]].read)):
        place = places[name]
        theirs = next((other for other in place.read if other in weights), None)
        if theirs is not None:
            whole = weights[theirs]
            if not is_finite(whole):
                raise UserError(f"{where} has weights that are not finite ({theirs}): restore its files")
            if (theirs, place.part) in taken:  # two of ours must not be one memory
                whole = whole.clone()
            taken.add((theirs, place.part))
        elif place.rule.default is not None:
            whole = torch.full(parameter.shape, place.rule.default)
        else:
            raise UserError(f"{where} lacks the weight {place.theirs}: its files are those of another model")
        rows = [own[sibling].shape[0] // (heads if place.rule.by_head else 1) for sibling in place.siblings]
        value = _part(place, whole, rows)
        if value is None or value.shape != parameter.shape:
            raise UserError(
                f"{where}: {place.theirs} is {list(whole.shape)}, and the config makes {name} "
                f"{list(parameter.shape)}: leave out overrides of model and tokenizer, or restore the folder"
            )
        filled[parameter] = _parameter(value, parameter)
    _check_tied(places, first, own, weights, where)
    for name in places:
        module, _, last = name.rpartition(".")
        setattr(model.get_submodule(module), last, filled[own[name]])
    used = {name for place in places.values() for name in place.read}
    extra = [name for name in weights if name not in used and not re.fullmatch(family.ignored, name)]
    unread = tuple(theirs for part in new for theirs in names.of_part(part))
    extra = [name for name in extra if not name.startswith(unread)]
    if extra:
        raise UserError(f"{where} has weights for which its config.json has no place, such as {extra[0]}")


def _check_tied(
    places: Mapping[str, Place],
    first: Mapping[nn.Parameter, str],
    own: Mapping[str, nn.Parameter],
    weights: Weights | WithHead,
    where: str,
) -> None:
    """Refuses two matrices in the files where the config ties them to be one, unless they are equal."""
    for name, place in places.items():
        used = next((other for other in places[first[own[name]]].read if other in weights), None)
        other = next((other for other in place.read if other in weights), None)
        if used is None or other in (None, used) or weights[used].is_meta:
            continue
        if not torch.equal(weights[used], weights[other]):
            raise UserError(
                f"{where} has other values in {other} than in {used}, and its config.json ties them: "
                "write tie_word_embeddings=false there, or remove one of them"
            )


def _part(place: Place, whole: Tensor, rows: list[int]) -> Tensor | None:
    """Ours in theirs; None if it is too small or large to be split so."""
    try:
        return place.rule.to_ours(whole, place.part, rows)
    except RuntimeError:
        return None


def _parameter(value: Tensor, old: nn.Parameter) -> nn.Parameter:
    device = value.device if old.is_meta else old.device
    return nn.Parameter(value.to(device=device, dtype=old.dtype).contiguous(), requires_grad=old.requires_grad)
