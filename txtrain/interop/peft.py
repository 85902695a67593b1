"""Adapters in the format of PEFT (https://github.com/huggingface/peft): an `adapter_config.json` and safetensors."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from txtrain.errors import UserError
from txtrain.interop import label_head
from txtrain.interop.family import Family
from txtrain.interop.names import Place
from txtrain.interop.peft_base import BaseMatrices
from txtrain.interop.peft_config import CONFIG, PRINCIPAL, is_target, read_config, start_of
from txtrain.model import EncoderDecoder
from txtrain.model.finite import first_not_finite
from txtrain.model.lora.exchange import Adapter, Change, taken
from txtrain.saving import write_tensors

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def read_adapter(
    path: Path, model: nn.Module, family: Family, *, heads: int, new: Sequence[str] = ()
) -> dict[str, Change]:
    """The adapter in a folder of PEFT's for a model of ours, to `put` on it.

    PEFT's one adapter of fused queries, keys and values becomes three, whose A are copies.

    Args:
        path: the folder.
        model: without adapters.
        family: says which layers of theirs are which of ours.
        heads: query heads of a layer.
        new: parts of the model that start anew, so that adapters of them are left out.

    Raises:
        UserError: the folder is damaged, or its adapter is one of another base.
    """
    config = read_config(path)
    modules, _, copies = read_tensors(path)
    result: dict[str, Change] = {}
    used: set[str] = set()
    own = dict(model.named_parameters())
    bases, copied = BaseMatrices(model), dict[str, tuple[Place, list[int]]]()
    for name, layer in model.named_modules():
        place = family.names.find_layer(name, own) if isinstance(layer, nn.Linear | nn.Embedding) else None
        if place is None:
            continue
        copied |= {known: (place, _rows(model, place, heads)) for known in _names(place, family) if known in copies}
        theirs = next((known for known in _names(place, family) if known in modules), None)
        if theirs is None:
            continue
        if not is_target(config, theirs, is_table=name in ("embedding.tokens", "head.linear"), file=path / CONFIG):
            raise UserError(
                f"{path / TENSORS} has an adapter of {theirs}, which {CONFIG} leaves out, so that PEFT passes over it: "
                "restore one of them"
            )
        used.add(theirs)
        parts: Mapping[str, Tensor] = modules[theirs]
        rows = _rows(model, place, heads)
        rank, alpha = len(parts["A"]), _of_pattern(config.get("alpha_pattern") or {}, theirs, config["lora_alpha"])
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        try:
            if start_of(config) in PRINCIPAL and isinstance(layer, nn.Linear):
                parts = bases.without_start(place, rows, parts, scale, start_of(config))
            tensors = _part(parts, place, rows, _sizes(layer))
        except RuntimeError:
            size_in, size_out = _sizes(layer)
            raise UserError(
                f"{path} is an adapter for another base: its {theirs} takes {parts['A'].shape[1]} and gives "
                f"{parts['B'].shape[0]}, and {name} takes {size_in} and gives {size_out}"
            ) from None
        result[name] = Change(scale=scale, dropout=config.get("lora_dropout") or 0.0, **tensors)
    anew = tuple(theirs for part in new for theirs in family.names.of_part(part))
    if unused := {name for name in modules.keys() - used if not name.startswith(anew)}:
        raise UserError(f"{path} is an adapter for another base, which has {min(unused)}: this one has no such layer")
    bases.check_copies({name: copies[name] for name in copies if not name.startswith(anew)}, copied, path / TENSORS)
    return result


def write_adapter(
    folder: Path,
    model: nn.Module,
    family: Family,
    *,
    heads: int,
    base: str | Path,
    rslora: bool = False,
    architecture: str | None = None,
) -> None:
    """Writes the adapters of a model as PEFT does, and a head that scores labels and trains whole.

    Those of queries, keys and values that are fused in theirs become one of the sum of their ranks, in blocks, unless
    they have A in common.

    Args:
        folder: made if it is missing.
        model: with adapters, not merged.
        family: says which layers of theirs are which of ours.
        heads: query heads of a layer.
        base: the model's folder, noted in the config.
        rslora: whether to write alpha for a scale of alpha / √r.
        architecture: the class of `transformers` with the model's head; the family's usual one if None.
    """
    head = label_head.tensors(model, family) if label_head.trains(model) else {}
    found = {name: change for name, change in taken(model).items() if not (head and name.startswith(label_head.HEAD))}
    assert found, "the model has no adapters"
    places, own = dict[str, Place](), dict(model.named_parameters())
    for name in found:
        place = family.names.find_layer(name, own)
        if place is None:
            raise UserError(f"{family.model_types[0]} has no layer like {name}: leave it out of lora.targets")
        places[place.module] = place
    changes = {theirs: _joined(model, place, found, heads) for theirs, place in places.items()}
    tensors: dict[str, Tensor] = {}
    for theirs, change in changes.items():
        table = isinstance(model.get_submodule(places[theirs].siblings[0]), nn.Embedding)
        low, high = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A.weight", "lora_B.weight")
        tensors[f"{PREFIX}{theirs}.{low}"], tensors[f"{PREFIX}{theirs}.{high}"] = change.low, change.high
        if change.magnitude is not None:
            tensors[f"{PREFIX}{theirs}.lora_magnitude_vector"] = change.magnitude
    tensors |= {f"{PREFIX}{theirs}": tensor for theirs, tensor in head.items()}
    found_places = (family.names.find_layer(name.rpartition(".")[0], own) for name in own)
    others = {place.theirs for place in found_places if place} - changes.keys()
    architecture = architecture or family.architecture
    task_type = _task_type(family, architecture)
    config = _config(changes, rslora=rslora) | {
        "target_modules": shortest(changes.keys(), others),
        "base_model_name_or_path": str(base),
        "task_type": task_type,
        "auto_mapping": None if task_type else {"base_model_class": architecture, "parent_library": "transformers"},
        "modules_to_save": label_head.modules(head, family) or None,
        "fan_in_fan_out": any(place.rule.transposed for place in places.values()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / TENSORS, {name: each.contiguous() for name, each in tensors.items()}, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _task_type(family: Family, architecture: str) -> str | None:
    """PEFT's name of what the model is for, where it has one."""
    if family.model_class is EncoderDecoder:
        return "SEQ_2_SEQ_LM"
    if re.search("CausalLM|LMHead", architecture):
        return "CAUSAL_LM"
    return next((task for task, end in label_head.CLASSES.items() if architecture.endswith(end)), None)


def shortest(names: Set[str], others: Set[str]) -> list[str]:
    """Ends of these names that mean them and none of the others to PEFT, such as `q_proj` for those of all layers."""
    ends = set()
    for name in names:
        parts = name.split(".")
        candidates = (".".join(parts[-length:]) for length in range(1, len(parts)))
        ends.add(next((end for end in candidates if not any(_ends_in(end, other) for other in others)), name))
    return sorted(ends)


def _ends_in(end: str, name: str) -> bool:
    return f".{name}".endswith(f".{end}")


def read_tensors(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """A, B and magnitude_vector of each of their modules that has an adapter; weights that were trained whole; and
    copies of the base's matrices, by module, which PEFT saves with adapters of embeddings and heads.

    Raises:
        UserError: the file is damaged, or has something else.
    """
    config = read_config(path)
    whole, stored = dict[str, Tensor](), dict[str, Tensor]()
    try:
        tensors = load_file(path / TENSORS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path / TENSORS} cannot be read ({error}): restore it") from error
    if bad := first_not_finite(tensors.items()):
        raise UserError(f"{path / TENSORS} has weights that are not finite ({bad}): restore it")
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.+)\.lora_(?:embedding_)?(A|B|magnitude_vector)(?:\.weight)?", name)
        own = name.removeprefix(PREFIX)
        if match is not None:
            modules[match[1].removeprefix(PREFIX)][match[2]] = tensor
        elif copied := re.fullmatch(r"(.*)\.base_layer\.weight|(.*(?:embed|wte|lm_head|word).*)\.weight", own):
            whole_there = any(f".{module}." in f".{own}" for module in config.get("modules_to_save") or ())
            (whole if whole_there else stored)[own if whole_there else copied[1] or copied[2]] = tensor
        elif config.get("modules_to_save"):
            whole[own] = tensor
        else:
            raise UserError(f"{path / TENSORS} has {name}, which is no adapter: txtrain reads LoRA and DoRA only")
    for name, parts in modules.items():
        if not {"A", "B"} <= parts.keys():
            raise UserError(f"{path / TENSORS} has only a half of the adapter of {name}: restore it")
        if ("magnitude_vector" in parts) != bool(config.get("use_dora")):
            has = "a" if "magnitude_vector" in parts else "no"
            raise UserError(
                f"{path / CONFIG} has use_dora={bool(config.get('use_dora'))}, and {TENSORS} has {has} magnitude of "
                f"{name}: restore one of them"
            )
    return modules, whole, stored


def _part(parts: Mapping[str, Tensor], place: Place, rows: list[int], sizes: tuple[int, int]) -> dict[str, Any]:
    """Of an adapter of theirs, what belongs to one of our layers: copies, which can be trained apart.

    Raises:
        RuntimeError: the sizes are not those of the layer.
    """
    rule, (size_in, size_out) = replace(place.rule, transposed=False), sizes  # B is (out, r) also where W is (in, out)
    low, high, magnitude = parts["A"], parts["B"], parts.get("magnitude_vector")
    if magnitude is not None:
        magnitude = rule.to_ours(magnitude, place.part, rows).reshape(size_out).clone()
    high = rule.to_ours(high, place.part, rows).reshape(size_out, len(low))
    return {"low": low.reshape(len(low), size_in).clone(), "high": high.clone(), "magnitude": magnitude}


def _names(place: Place | None, family: Family) -> Sequence[str]:
    """Names that their module may have in files: of the model with its head, or of what is under it.

    A weight that files have under several names is a table that is used in several places, under none of them: an
    adapter of such a name is never called.
    """
    names = () if place is None else (place.module,) if place.rule.read else (place.module, place.theirs)
    return [*names, *(name.removeprefix(family.prefix) for name in names)]


def _rows(model: nn.Module, place: Place, heads: int) -> list[int]:
    """Outputs of each of ours that are side by side in theirs; per head, if they are so in each head."""
    sizes = [_sizes(model.get_submodule(sibling))[1] for sibling in place.siblings]
    return [size // heads if place.rule.by_head else size for size in sizes]


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a layer with an adapter or without."""
    rows, columns = layer.get_parameter("weight").shape
    return (rows, columns) if isinstance(layer, nn.Embedding) else (columns, rows)


def _joined(model: nn.Module, place: Place, found: Adapter, heads: int) -> Change:
    """The change of one layer of theirs: of ours, or of several of ours in blocks."""
    own = [found.get(sibling) for sibling in place.siblings]
    there = [change for change in own if change is not None]
    first = there[0]
    if len(own) == 1:
        return first
    low, highs = first.low, [change.high for change in there]
    alike = all(torch.equal(change.low, low) and change.scale == first.scale for change in there)
    layers = [model.get_submodule(sibling) for sibling in place.siblings]
    if not alike or len(there) < len(own):
        low = torch.cat([change.low for change in there])
        highs = [low.new_zeros(_sizes(layer)[1], len(low)) for layer in layers]
        column = 0
        for change, high in zip(own, highs, strict=True):
            if change is not None:
                high[:, column : column + len(change.low)] = change.scale / first.scale * change.high
                column += len(change.low)
    rule, rows, magnitude = replace(place.rule, transposed=False), _rows(model, place, heads), None
    if first.magnitude is not None:
        lengths = [layer.get_parameter("weight").float().norm(dim=1) for layer in layers]
        own_magnitudes = [
            length if change is None or change.magnitude is None else change.magnitude
            for change, length in zip(own, lengths, strict=True)
        ]
        magnitude = rule.to_theirs(own_magnitudes, rows)
    high = rule.to_theirs(highs, rows)
    return Change(low=low, high=high, scale=first.scale, magnitude=magnitude, dropout=first.dropout)


def _config(changes: Mapping[str, Change], *, rslora: bool) -> dict[str, Any]:
    """PEFT's settings: the most frequent rank and alpha, and patterns for layers with others."""
    ranks = {name: len(change.low) for name, change in changes.items()}
    alphas = {
        name: round(change.scale * (ranks[name] ** 0.5 if rslora else ranks[name]), 9)
        for name, change in changes.items()
    }
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "use_rslora": rslora,
        "use_dora": any(change.magnitude is not None for change in changes.values()),
        "lora_dropout": max(change.dropout for change in changes.values()),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _of_pattern(pattern: Mapping[str, float], name: str, otherwise: float) -> float:
    """As PEFT does: the first pattern that the end of the name fits."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)
