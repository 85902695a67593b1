"""A Hugging Face model folder, read: config.json becomes axes, safetensors become weights."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from txtrain.config import check, instantiate
from txtrain.errors import UserError
from txtrain.interop.axes import Nodes
from txtrain.interop.families import families
from txtrain.interop.family import Family, Field, look_up
from txtrain.interop.weights import Shapes, Weights, WithHead, fill

CONFIG = "config.json"
SMALL = 2**24  # weights that are made at once, whatever a folder has
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A folder that has been understood; its weights are not read yet.

    Args:
        path: the folder.
        family: what it is one of.
        config: its config.json.
        axes: config nodes of the model.
        max_len: the longest sequence that it was trained on.
        labels: names of those that its head scores, if it scores labels.
    """

    path: Path
    family: Family
    config: dict[str, Any]
    axes: Nodes
    max_len: int
    labels: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """What of the model the axes do not say."""
        sizes = {"max_len": self.max_len} | self.family.sizes(self.config)
        if self.family.reads == "tokens":
            sizes["vocab_size"] = int(self.config["vocab_size"])
        if self.labels:
            sizes["num_labels"] = len(self.labels)
        return sizes

    @property
    def problem_type(self) -> str | None:
        """What its scores of labels mean, where it says so."""
        return self.config.get("problem_type")

    @property
    def dtype(self) -> torch.dtype:
        """The type that its weights were saved in."""
        name = str(self.config.get("dtype", self.config.get("torch_dtype")) or "float32").removeprefix("torch.")
        found = getattr(torch, name, None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise UserError(f"{self.path / CONFIG} has dtype={name}, which is no type of numbers: restore it")
        return found

    def build(self, build_model: Callable[[], nn.Module], new: Sequence[str] = ()) -> nn.Module:
        """The model that `build_model` makes, filled.

        Without new parts there is never more in memory than its weights and a file of them. Where the current device
        is meta, it stays without memory.

        Args:
            build_model: makes the model.
            new: names of its parts that start anew, such as `head`.

        Raises:
            UserError: the folder's weights are not those of that model.
        """
        model = self._new(build_model)
        if torch.get_default_device().type == "meta":
            return model
        self.fill(model, new)
        if new:
            fresh = build_model()
            for part in new:
                setattr(model, part, getattr(fresh, part))
        return model

    def check(self, build_model: Callable[[], nn.Module], new: Sequence[str] = ()) -> None:
        """Raises what `build` would, and reads no weight."""
        self._fill(self._new(build_model), Shapes(self.path, prefix=self.family.prefix), new)

    def fill(self, model: nn.Module, new: Sequence[str] = ()) -> None:
        """Gives a model of these axes, which may be on the meta device, the weights."""
        self._fill(model, Weights(self.path, prefix=self.family.prefix), new)

    def _fill(self, model: nn.Module, weights: Weights | WithHead, new: Sequence[str]) -> None:
        fill(model, weights, self.family, heads=self.axes["model"]["num_heads"], where=str(self.path), new=new)

    def _new(self, build_model: Callable[[], nn.Module]) -> nn.Module:
        try:
            with torch.device("meta"):
                model = build_model()
        except (ValueError, OverflowError, RuntimeError) as error:
            raise UserError(f"{self.path} cannot be built: {str(error).splitlines()[0]}") from error
        wanted = self.family.model_class
        # A model with one more head is made from another's weights, but no decoder from an encoder's.
        if not isinstance(model, wanted) or getattr(model, "causal", None) != getattr(wanted, "causal", None):
            raise UserError(
                f"{self.path} is a {self.family.model_types[0]} model ({wanted.__name__}), and the task trains a "
                f"{type(model).__name__}: choose another task or another folder"
            )
        return model


def is_folder(path: str | Path) -> bool:
    """Whether this is a Hugging Face model folder: it has a config.json with a `model_type`."""
    try:
        return "model_type" in json.loads((Path(path) / CONFIG).read_text())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def check_size(path: Path, family: Family, config: dict[str, Any]) -> None:
    """Refuses a config whose model has more weights than its files have bytes, before any of it is made.

    Args:
        path: the folder.
        family: what it is one of.
        config: completed.

    Raises:
        UserError: so it is.
    """
    held = sum(file.stat().st_size for file in path.glob("*.safetensors") if file.is_file())
    fields = [part for part in family.parts if isinstance(part, Field)]
    sizes = {part.ours: config[part.theirs] for part in fields if isinstance(config.get(part.theirs), int)}
    dim, layers = sizes.get("model.dim", 1), sizes.get("model.num_layers", 1)
    queries = sizes.get("model.num_heads", 0) * sizes.get("model.head_dim", 0)
    in_layer = 2 + 2 * sizes.get("model.ffn_dim", 0) + 2 * queries
    rows = (config.get("vocab_size") or 0) + sizes.get("encoding.max_len", 0)
    least = dim * (rows + in_layer * max(layers, sizes.get("model.num_decoder_layers", 0)))
    if least > max(held, SMALL):
        raise UserError(f"its config.json makes {least:.1e} weights or more, and its files have {held:.1e} bytes")


def _check_problem(kind: Any, labels: Sequence[str]) -> None:
    if kind not in (None, *PROBLEMS):
        raise UserError(f"its problem_type is {kind}, and may be {', '.join(PROBLEMS)}")
    if kind == "single_label_classification" and len(labels) == 1:
        raise UserError("its problem_type is single_label_classification, and it has one label: name a second one")


def read_folder(path: str | Path) -> Imported:
    """Understands a folder.

    Raises:
        UserError: it is none, its family is not known, or something in it has no counterpart.
    """
    path = Path(path).expanduser().absolute()
    try:
        config = json.loads((path / CONFIG).read_text())
        model_type = str(config["model_type"])
    except OSError as error:
        raise UserError(
            f"{path / CONFIG} cannot be read ({error.strerror}): name a Hugging Face model folder"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path / CONFIG} is no model's config.json ({error!r}): restore it") from error
    known = families()
    if model_type not in known:
        raise UserError(f"{path} is a {model_type} model: txtrain reads {', '.join(sorted(known))}")
    if config.get("quantization_config"):
        raise UserError(f"{path} has quantized weights, which txtrain does not read: take the folder with plain ones")
    family = known[model_type]
    try:
        config = family.complete(config)
        family.check(config)
        check_size(path, family, config)
        axes, longest, labels = family.axes(config), family.longest(config), family.labels(config)
        _check_problem(config.get("problem_type"), labels)
        if family.reads == "tokens":
            axes["model"] |= {"vocab_size": int(look_up(config, "vocab_size")), "max_len": longest}
        check(axes)
        try:
            instantiate(axes["model"], "model")  # what its sizes must have in common
        except ValueError as error:
            raise UserError(str(error)) from error
    except UserError as error:
        raise UserError(f"{path} cannot be expressed: {error}") from error
    except KeyError as error:
        raise UserError(f"{path} cannot be read: its config.json has no {error}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError, MemoryError) as error:
        raise UserError(f"{path / CONFIG} has a value of another kind than a {model_type} has ({error})") from error
    return Imported(path=path, family=family, config=config, axes=axes, max_len=longest, labels=labels)
