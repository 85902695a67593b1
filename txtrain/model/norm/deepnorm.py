"""Post-norm made stable by its depth."""

from typing import Any

from torch import Tensor, nn

from txtrain.model.norm.base import NormPlacement
from txtrain.model.norm.post import PostNormWiring
from txtrain.model.shape import Stack


def deepnorm_constants(stack: Stack) -> tuple[float, float]:
    """α and β by the table of the paper, for N encoder and M decoder layers."""
    layers = stack.num_layers
    if stack.cross:  # the decoder of an encoder-decoder: M
        return (3 * layers) ** (1 / 4), (12 * layers) ** (-1 / 4)
    if stack.other_layers and not stack.causal:  # its encoder: N⁴M
        depth = layers**4 * stack.other_layers
        return 0.81 * depth ** (1 / 16), 0.87 * depth ** (-1 / 16)
    return (2 * layers) ** (1 / 4), (8 * layers) ** (-1 / 4)


class DeepNorm(NormPlacement):
    """x ← norm(α · x + f(x)) with small initial branches (https://arxiv.org/abs/2203.00555), for up to 1000 layers.

    α weighs the skip connection up with depth and β, an initial gain, weighs the branches down, so that the first
    updates change the output by a bounded amount however deep the stack is.
    """

    def __init__(self, **base: Any) -> None:
        super().__init__(**base)
        self.alpha, self.beta = deepnorm_constants(self.stack)

    def wiring(self) -> PostNormWiring:
        return PostNormWiring(self.new_norms(), skip_gain=self.alpha)

    def close(self, stream: Tensor) -> Tensor:
        return stream

    def init_std(self, projection: str, linear: nn.Linear) -> float:
        """Xavier's, with gain β on the two matrices that carry each branch's value; what only weighs it has gain 1."""
        gain = self.beta if projection in ("v_proj", "o_proj", "up_proj", "down_proj") else 1.0
        return gain * (2 / (linear.in_features + linear.out_features)) ** 0.5
