"""Norm after each sublayer, inside the residual branch."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from txtrain.model.norm.base import NormPlacement, Sublayer, Wiring


class ReorderedNormWiring(Wiring):
    """x ← x + norm(f(x)) for each sublayer f."""

    def __init__(self, norms: nn.ModuleList) -> None:
        super().__init__()
        self.norms = norms

    def forward(self, stream: Tensor, sublayers: Sequence[Sublayer]) -> Tensor:
        for norm, sublayer in zip(self.norms, sublayers, strict=True):
            stream = stream + sublayer(stream, norm)
        return stream


class ReorderedNorm(NormPlacement):
    """OLMo 2's placement (https://arxiv.org/abs/2501.00656): pre-norm's identity path, post-norm's bounded branches."""

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.final = self.new_norm()

    def wiring(self) -> ReorderedNormWiring:
        return ReorderedNormWiring(self.new_norms())

    def close(self, stream: Tensor) -> Tensor:
        return self.final(stream)
