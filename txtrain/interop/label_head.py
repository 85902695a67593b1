"""Heads that score labels: they train in full beside adapters, as PEFT's `modules_to_save`."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from txtrain.data.labels import LABELS, read_labels
from txtrain.errors import UserError
from txtrain.interop.family import Family
from txtrain.interop.folder import Imported
from txtrain.interop.names import Place
from txtrain.interop.weights import WithHead
from txtrain.model.head import LABELLING
from txtrain.model.lora.merging import adapters

HEAD = "head."
# PEFT's names of what a model is for, and how the names of its classes in `transformers` end.
CLASSES = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}


def trains(model: nn.Module) -> bool:
    """Whether a model has a head that scores labels, and it trains."""
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Module) or getattr(head, "scores", None) not in LABELLING:
        return False
    return any(weight.requires_grad for weight in head.parameters())


def places(model: nn.Module, family: Family) -> dict[str, Place]:
    """Where each parameter of a model's head is in the family's, but for adapters' own."""
    own = dict(model.named_parameters())
    found = {name: family.names.find(name, own) for name in own if name.startswith(HEAD) and ".lora_" not in name}
    return {name: place for name, place in found.items() if place is not None}


def tensors(model: nn.Module, family: Family) -> dict[str, Tensor]:
    """The head by their names; an adapter in it is merged, since PEFT has none on what it saves whole."""
    merged = {f"{name}.weight": layer.merged_weight() for name, layer in adapters(model) if name.startswith(HEAD)}
    found = {}
    for name, place in places(model, family).items():
        weight = merged.get(name, model.get_parameter(name)).detach()
        found[place.module] = place.rule.to_theirs([weight], [len(weight)]).clone()
    return found


def modules(names: Iterable[str], family: Family) -> list[str]:
    """What `modules_to_save` says of weights: their layer within the body, and outside it all of the head."""
    layers = {name.rpartition(".")[0] for name in names}
    return sorted({layer if layer.startswith(family.prefix) else layer.partition(".")[0] for layer in layers})


def with_labels(base: Imported, config: Mapping[str, Any], head: Mapping[str, Tensor], where: Path) -> dict[str, Any]:
    """What an adapter's head changes in what is known of its base: the class, the axes and the labels.

    Args:
        base: the folder that the adapter is of.
        config: the adapter_config.json.
        head: the tensors that the adapter has whole.
        where: the adapter's folder, in which `labels.json` may name the labels.

    Raises:
        UserError: they are no head that scores labels.
    """
    own = (base.config.get("architectures") or [base.family.architecture])[0]
    end = CLASSES.get(str(config.get("task_type")))
    named = (config.get("auto_mapping") or {}).get("base_model_class")
    architecture = re.sub(r"(For[A-Z]\w*|Model)$", "", own) + end if end else named or own
    theirs = base.config | {"architectures": [architecture]}
    try:
        axes, names = base.family.axes(theirs), base.family.labels(theirs)
    except UserError as error:
        raise UserError(f"{where} cannot be expressed: {error}") from error
    scores = [f"{rule.theirs}.weight" for rule in base.family.rules if rule.parts == ("head.linear",)]
    found = next((head[name] for name in scores if name in head), None)
    if not names or found is None:
        raise UserError(
            f"{where} has {min(head)} whole (modules_to_save), and txtrain reads only a head of labels so: "
            "merge it in PEFT and name the merged folder"
        )
    if (where / LABELS).is_file():
        names = tuple(read_labels(where))
        if len(names) != len(found):
            raise UserError(f"{where / LABELS} names {len(names)} labels, and the head scores {len(found)}: restore it")
    elif len(names) != len(found):
        names = tuple(f"LABEL_{number}" for number in range(len(found)))
    return {"config": theirs, "axes": base.axes | {"head": axes["head"]}, "labels": names}


def check_head(model: nn.Module, family: Family, head: Mapping[str, Tensor], there: WithHead, where: Path) -> None:
    """Refuses what an adapter has whole if it is not the head of this model, or not enough of it.

    Raises:
        UserError: so it is.
    """
    wanted = {place.theirs for place in places(model, family).values()}
    if other := head.keys() - wanted:
        raise UserError(
            f"{where} has {min(other)} whole (modules_to_save), and txtrain reads only a head of labels so: "
            "merge it in PEFT and name the merged folder"
        )
    if lacking := sorted(name for name in wanted if name not in there):
        raise UserError(
            f"neither {where} nor its base has {lacking[0]}, without which the head gives what nobody has trained: "
            f"train it with {lacking[0].rpartition('.')[0]} in modules_to_save"
        )
