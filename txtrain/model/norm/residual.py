"""Two residual streams, one post-normed and one free."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from txtrain.model.norm.base import NormPlacement, Sublayer, Wiring

Streams = tuple[Tensor, Tensor]


class ResiDualWiring(Wiring):
    """y = f(post); post ← norm(post + y); free ← free + y, for each sublayer f."""

    def __init__(self, norms: nn.ModuleList) -> None:
        super().__init__()
        self.norms = norms

    def forward(self, stream: Streams, sublayers: Sequence[Sublayer]) -> Streams:
        post, free = stream
        for norm, sublayer in zip(self.norms, sublayers, strict=True):
            branch = sublayer(post)
            post, free = norm(post + branch), free + branch
        return post, free


class ResiDual(NormPlacement):
    """ResiDual (https://arxiv.org/abs/2304.14802): sublayers read a post-normed stream, a second sums their outputs.

    The stream is a pair of (B, T, D). The output is post + norm(free): the first keeps layers different from each
    other, as post-norm does, the second carries gradients past all norms, as pre-norm does.
    """

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.final = self.new_norm()

    def open(self, x: Tensor) -> Streams:
        return x, x

    def wiring(self) -> ResiDualWiring:
        return ResiDualWiring(self.new_norms())

    def close(self, stream: Streams) -> Tensor:
        post, free = stream
        return post + self.final(free)
