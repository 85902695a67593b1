"""All sublayers of a layer side by side."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from txtrain.model.norm.base import NormPlacement, Sublayer, Wiring, unbounded_branch_gain


class ParallelNormWiring(Wiring):
    """x ← x + Σ f(norm(x)) over the layer's sublayers f, with one norm for all of them or one for each."""

    def __init__(self, norms: nn.ModuleList) -> None:
        super().__init__()
        self.norms = norms

    def forward(self, stream: Tensor, sublayers: Sequence[Sublayer]) -> Tensor:
        normed = [norm(stream) for norm in self.norms]
        if len(normed) == 1:
            normed = normed * len(sublayers)
        for x, sublayer in zip(normed, sublayers, strict=True):
            stream = stream + sublayer(x)
        return stream


class ParallelNorm(NormPlacement):
    """Pre-norm with parallel branches, as in GPT-J, GPT-NeoX (https://arxiv.org/abs/2204.06745) and PaLM.

    Cross-attention is one more branch: it reads what self-attention reads, not what self-attention wrote.

    Args:
        shared: whether a layer's branches read one norm (GPT-J, PaLM) or each its own (GPT-NeoX).
    """

    def __init__(self, *, shared: bool = True, **base: Any) -> None:
        super().__init__(**base)
        self.shared = shared
        self.branch_gain = unbounded_branch_gain(self.stack)
        self.final = self.new_norm()

    def wiring(self) -> ParallelNormWiring:
        return ParallelNormWiring(nn.ModuleList([self.new_norm()]) if self.shared else self.new_norms())

    def close(self, stream: Tensor) -> Tensor:
        return self.final(stream)
