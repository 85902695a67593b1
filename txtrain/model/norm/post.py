"""Norm after each residual addition."""

from collections.abc import Sequence

from torch import Tensor, nn

from txtrain.model.norm.base import NormPlacement, Sublayer, Wiring


class PostNormWiring(Wiring):
    """x ← norm(skip_gain · x + f(x)) for each sublayer f."""

    def __init__(self, norms: nn.ModuleList, skip_gain: float = 1.0) -> None:
        super().__init__()
        self.norms = norms
        self.skip_gain = skip_gain

    def forward(self, stream: Tensor, sublayers: Sequence[Sublayer]) -> Tensor:
        for norm, sublayer in zip(self.norms, sublayers, strict=True):
            stream = norm(self.skip_gain * stream + sublayer(stream))
        return stream


class PostNorm(NormPlacement):
    """Post-norm, the first Transformer's and BERT's (https://arxiv.org/abs/1706.03762): no path around the norms."""

    def wiring(self) -> PostNormWiring:
        return PostNormWiring(self.new_norms())

    def close(self, stream: Tensor) -> Tensor:
        return stream
