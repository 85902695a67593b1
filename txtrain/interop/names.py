"""Names of weights, ours and a family's: which module of theirs holds which of ours, and how."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

LAYER = "{layer}"


@dataclass(frozen=True)
class Rule:
    """One module of theirs that holds one of ours, or several side by side.

    The parameters of a module (weight, bias) keep their names. In names `{layer}` stands for a layer's number. A rule
    can also be of one parameter, by its whole name.

    Args:
        ours: names of our modules; several are fused in this order.
        theirs: name of their module.
        transposed: whether their matrix is stored (in, out), as GPT-2's is.
        by_head: whether fused queries, keys and values lie side by side in each head (GPT-NeoX, BLOOM).
        leading: dimensions of size 1 that their tensor has before ours, as BART's bias of logits does.
        as_kernel: whether their matrix is stored (out, channels, height, width), as a convolution over patches.
        read: names that files may have it under, in the order to look for them. Default: `theirs` alone.
        default: what ours is filled with where files have none of these; an error if None.
        module: name that their module has in `transformers`, where files keep an older one; adapters go by it.
        given: a parameter of ours; the rule is only for models that have it (T5's gated layers have other names).
        without: a parameter of ours; the rule is only for models that do not have it (BERT's heads of labels).
    """

    ours: str | tuple[str, ...]
    theirs: str
    transposed: bool = False
    by_head: bool = False
    leading: int = 0
    as_kernel: bool = False
    read: tuple[str, ...] = ()
    default: float | None = None
    module: str | None = None
    given: str | None = None
    without: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def to_ours(self, theirs: Tensor, part: int, rows: Sequence[int]) -> Tensor:
        """Our tensor in theirs, a view where it can be.

        Args:
            theirs: their whole tensor.
            part: which of ours is wanted.
            rows: outputs of each of ours; with `by_head`, those of one head.
        """
        for _ in range(self.leading):
            theirs = theirs.squeeze(0)
        if self.as_kernel and theirs.dim() > 2:
            theirs = theirs.flatten(1)
        if self.transposed and theirs.dim() == 2:
            theirs = theirs.T
        if len(self.parts) == 1:
            return theirs
        if self.by_head:
            heads = theirs.unflatten(0, (-1, sum(rows)))
            return heads.split(list(rows), dim=1)[part].flatten(0, 1)
        return theirs.split(list(rows))[part]

    def to_theirs(self, ours: Sequence[Tensor], rows: Sequence[int], kernel: Sequence[int] = ()) -> Tensor:
        """Their tensor made of ours; rows are as in `to_ours`, kernel is (channels, height, width) of a patch."""
        if len(ours) == 1:
            whole = ours[0]
        elif self.by_head:
            whole = torch.cat([x.unflatten(0, (-1, n)) for x, n in zip(ours, rows, strict=True)], dim=1).flatten(0, 1)
        else:
            whole = torch.cat(list(ours))
        if self.as_kernel and whole.dim() == 2:
            whole = whole.unflatten(1, tuple(kernel))
        whole = whole.T if self.transposed and whole.dim() == 2 else whole
        return whole[(None,) * self.leading]


@dataclass(frozen=True)
class Place:
    """Where one of our parameters or modules is among theirs."""

    rule: Rule
    part: int
    theirs: str
    module: str
    """Their name of it in `transformers`."""
    siblings: tuple[str, ...]
    """All of ours that are fused there, itself included, in order."""
    read: tuple[str, ...]
    """Names that files may have it under, in the order to look for them."""


class Names:
    """The rules of a family.

    Args:
        rules: all of them.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], Rule, int]]:
        return [
            (re.compile(re.escape(ours).replace(re.escape(LAYER), r"(?P<layer>\d+)") + r"(?P<rest>\.\w+)?"), rule, part)
            for rule in self.rules
            for part, ours in enumerate(rule.parts)
        ]

    def find(self, ours: str, own: Container[str] = ()) -> Place | None:
        """Where our module or parameter of this name is; None if the family has no such thing.

        Args:
            ours: its name.
            own: names of all parameters of the model.
        """
        for pattern, rule, part in self._patterns:
            if match := pattern.fullmatch(ours):
                found = match.groupdict()
                layer, rest = found.get("layer") or "", found["rest"] or ""
                if rule.given is not None and rule.given.replace(LAYER, layer) not in own:
                    continue
                if rule.without is not None and rule.without in own:
                    continue
                names = (rule.theirs, rule.module or rule.theirs, *rule.read)
                theirs, module, *read = [name.replace(LAYER, layer) + rest for name in names]
                siblings = tuple(name.replace(LAYER, layer) + rest for name in rule.parts)
                return Place(rule, part, theirs, module, siblings, tuple(read) or (theirs,))
        return None

    def find_layer(self, ours: str, own: Container[str] = ()) -> Place | None:
        """The same for a layer, also where its weight has a rule of its own."""
        place = self.find(ours, own)
        weight = self.find(f"{ours}.weight", own) if place is None else None
        if weight is None or not weight.theirs.endswith(".weight"):
            return place
        return Place(
            weight.rule,
            weight.part,
            weight.theirs.removesuffix(".weight"),
            weight.module.removesuffix(".weight"),
            tuple(name.removesuffix(".weight") for name in weight.siblings),
            tuple(name.removesuffix(".weight") for name in weight.read),
        )

    def of_part(self, part: str) -> Iterator[str]:
        """How their names of the weights in one of our parts, such as `head`, begin."""
        for rule in self.rules:
            if any(ours.partition(".")[0] == part for ours in rule.parts):
                yield from (rule.theirs, *rule.read)


def in_layers(ours: str, theirs: str, names: Mapping[Any, str], **how: Any) -> Iterable[Rule]:
    """Rules for names within a layer, such as `attention.q_proj`; `ours` and `theirs` are the layers' names."""
    for own, other in names.items():
        parts = (own,) if isinstance(own, str) else own
        whole = tuple(f"{ours}.{part}" for part in parts)
        yield Rule(whole if len(whole) > 1 else whole[0], f"{theirs}.{other}", **how)
