"""Norm before and after each sublayer."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from txtrain.model.norm.base import NormPlacement, Sublayer, Wiring


class SandwichNormWiring(Wiring):
    """x ← x + norm_out(f(norm_in(x))) for each sublayer f."""

    def __init__(self, inner: nn.ModuleList, outer: nn.ModuleList) -> None:
        super().__init__()
        self.inner = inner
        self.outer = outer

    def forward(self, stream: Tensor, sublayers: Sequence[Sublayer]) -> Tensor:
        for norm_in, norm_out, sublayer in zip(self.inner, self.outer, sublayers, strict=True):
            stream = stream + sublayer(norm_in(stream), norm_out)
        return stream


class SandwichNorm(NormPlacement):
    """Peri-LN (https://arxiv.org/abs/2502.02732), as in Gemma 2: each branch adds as much variance, one final norm."""

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.final = self.new_norm()

    def wiring(self) -> SandwichNormWiring:
        return SandwichNormWiring(self.new_norms(), self.new_norms())

    def close(self, stream: Tensor) -> Tensor:
        return self.final(stream)
