"""Norm before each sublayer."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from txtrain.model.norm.base import NormPlacement, Sublayer, Wiring, unbounded_branch_gain


class PreNormWiring(Wiring):
    """x ← x + f(norm(x)) for each sublayer f."""

    def __init__(self, norms: nn.ModuleList) -> None:
        super().__init__()
        self.norms = norms

    def forward(self, stream: Tensor, sublayers: Sequence[Sublayer]) -> Tensor:
        for norm, sublayer in zip(self.norms, sublayers, strict=True):
            stream = stream + sublayer(norm(stream))
        return stream


class PreNorm(NormPlacement):
    """Pre-norm (https://arxiv.org/abs/2002.04745): an identity path from input to output, and one final norm."""

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.branch_gain = unbounded_branch_gain(self.stack)
        self.final = self.new_norm()

    def wiring(self) -> PreNormWiring:
        return PreNormWiring(self.new_norms())

    def close(self, stream: Tensor) -> Tensor:
        return self.final(stream)
