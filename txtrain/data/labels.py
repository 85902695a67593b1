"""Names of classes: found in data, told, kept with a trained model; and the split that leaves each on both sides."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from txtrain import records
from txtrain.errors import UserError

LABELS = "labels.json"
TOLD = 12  # classes that are told by name


def find_labels(labels: Iterable[str], where: str) -> list[str]:
    """The names of all classes, in order.

    Raises:
        UserError: there is one only, or none.
    """
    found = sorted(set(labels))
    if len(found) < 2:
        got = f"only the label {found[0]}" if found else "no labelled example"
        raise UserError(f"{where} has {got}: give examples of two labels or more")
    return found


def write_labels(folder: Path, labels: Sequence[str]) -> None:
    (folder / LABELS).write_text(json.dumps(list(labels), ensure_ascii=False) + "\n", encoding="utf-8")


def read_labels(folder: Path) -> list[str]:
    """The names of the classes of a trained model, by their numbers."""
    path = folder / LABELS
    return records.checked(path, records.read_json(path), records.LABELS)


def balance(counts: Sequence[int], labels: Sequence[str]) -> str:
    """How many examples each class has, the largest first: `3: yes 60 (60%), no 30 (30%), unsure 10 (10%)`."""
    total, order = max(sum(counts), 1), sorted(range(len(labels)), key=lambda label: -counts[label])
    told = [f"{labels[label]} {counts[label]} ({counts[label] / total:.0%})" for label in order[:TOLD]]
    return f"{len(labels)}: {', '.join(told)}" + (", ..." if len(labels) > TOLD else "")


def class_weights(wanted: str | list[float] | None, counts: Callable[[], Sequence[int]], labels: Sequence[str]) -> Any:
    """The weight of each label, (L,) in float64, or None.

    Args:
        wanted: a weight for each, or `balanced`: N / (L · n) for a label that n of the N targets have.
        counts: how many targets of training have each label.
        labels: their names.
    """
    if wanted is None:
        return None
    if isinstance(wanted, list):
        if len(wanted) != len(labels):
            raise UserError(
                f"loss.class_weights has {len(wanted)} weights, and the data have {len(labels)} labels "
                f"({', '.join(labels[:TOLD])}): give one for each, in this order"
            )
        return torch.tensor(wanted, dtype=torch.float64)
    found = torch.tensor(counts(), dtype=torch.float64)
    return (found.sum() / (len(found) * found)).where(found > 0, 0.0)


def check_known(labels: Iterable[tuple[str, str]], known: Sequence[str]) -> None:
    """Refuses a label, given with its place, that no example to train on has."""
    for label, place in labels:
        if label not in known:
            raise UserError(f"{place} has the label {label}, which is none of {', '.join(known[:TOLD])}: correct it")


def split_by_group(groups: Sequence[str], labels: Sequence[str], fraction: float) -> NDArray[np.bool_]:
    """Which examples are held out: of each label a fraction, at least one, by a hash of their groups.

    All examples of a group are on one side. A group is counted with the label of its first example. A fraction of 1 is
    all of them.
    """
    if fraction == 1:
        return np.ones(len(groups), dtype=bool)
    first: dict[str, str] = {}
    for group, label in zip(groups, labels, strict=True):
        first.setdefault(group, label)
    members: dict[str, list[str]] = defaultdict(list)
    for group, label in first.items():
        members[label].append(group)
    held_out: set[str] = set()
    for found in members.values():
        count = max(1, round(fraction * len(found))) if len(found) > 1 else 0
        held_out.update(sorted(found, key=_score)[:count])
    return np.array([group in held_out for group in groups], dtype=bool)


def check_classes(
    train: Sequence[int], validation: Sequence[int], labels: Sequence[str], where: str, *, own: bool = True
) -> None:
    """Refuses a class that has no example to train on, where there are any, and to have none to validate on.

    Args:
        train, validation: examples of each label.
        labels: their names.
        where: the source in the words of the command line.
        own: whether the labels are those of these data; of those of others, data need not have all.
    """
    empty = [label for label, count in zip(labels, train, strict=True) if not count]
    if own and empty and sum(train):
        raise UserError(f"{where} has no example of the label {empty[0]} to train on: give some, or remove the label")
    if not sum(validation):
        if not sum(train):
            raise UserError(f"{where} has no labelled example: give some")
        raise UserError(f"{where} leaves nothing to validate on: give more, or set data.validation_fraction=0.5")


def _score(group: str) -> bytes:
    return hashlib.blake2b(group.encode(errors="surrogatepass"), digest_size=8).digest()
