"""What every norm placement is: the wiring of residual branches and norms through a stack of layers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from txtrain.model.norm.layer import RMSNorm, UnitOffsetRMSNorm
from txtrain.model.shape import Stack


class Sublayer(Protocol):
    """Self-attention, cross-attention or the feed-forward layer, with the dropout and drop path that end its branch."""

    def __call__(self, x: Tensor, outer: Callable[[Tensor], Tensor] | None = None, /) -> Tensor:
        """(B, T, D) → (B, T, D). A norm on the branch is `outer`: it runs before dropout.

        A norm after dropout would undo its factor 1 / (1 - p), since a norm's output has one size whatever its input's.
        """


BASE_STD = 0.02


class Wiring(nn.Module, ABC):
    """How one layer's sublayers and norms join the residual stream. It owns the layer's norms."""

    @abstractmethod
    def forward(self, stream: Any, sublayers: Sequence[Sublayer]) -> Any:
        """Runs self-attention, [cross-attention,] and feed-forward, each (B, T, D) → (B, T, D), on the stream.

        A norm of a sublayer's output alone goes into the call, `sublayer(x, norm)`.
        """


class NormPlacement(nn.Module, ABC):
    """Where the norms of a stack stand. `open` the stream, pass it through each layer's `Wiring`, `close` it.

    Args:
        stack: the stack that it serves.
        layer: the norm itself, LayerNorm (https://arxiv.org/abs/1607.06450) or RMSNorm (https://arxiv.org/abs/1910.07467).
        eps: added to the variance or mean square.
        bias: whether a LayerNorm has a bias (an RMSNorm has none).
        unit_offset: whether an RMSNorm's weight is kept as its difference from 1 (Gemma).
    """

    branch_gain: float = 1.0
    """Factor on the initial weights of what writes to the stream: `o_proj` and `down_proj`."""

    def __init__(
        self,
        *,
        stack: Stack,
        layer: Literal["layernorm", "rmsnorm"] = "rmsnorm",
        eps: float = 1e-5,
        bias: bool = False,
        unit_offset: bool = False,
    ) -> None:
        super().__init__()
        if bias and layer == "rmsnorm":
            raise ValueError(
                "norm.bias=true needs a norm that has one, got norm.layer=rmsnorm: set norm.layer=layernorm"
            )
        if unit_offset and layer == "layernorm":
            raise ValueError(
                "norm.unit_offset=true is for an RMSNorm, got norm.layer=layernorm: set norm.layer=rmsnorm"
            )
        if eps <= 0:
            raise ValueError(f"norm.eps is {eps}: give a positive number, such as norm.eps=1e-5")
        self.stack, self._layer, self._eps, self._bias = stack, layer, eps, bias
        self._rmsnorm = UnitOffsetRMSNorm if unit_offset else RMSNorm

    def new_norm(self) -> nn.Module:
        """A new norm over the last dimension, of size D."""
        if self._layer == "layernorm":
            return nn.LayerNorm(self.stack.dim, eps=self._eps, bias=self._bias)
        return self._rmsnorm(self.stack.dim, eps=self._eps)

    def new_norms(self) -> nn.ModuleList:
        """One new norm for each sublayer of a layer."""
        return nn.ModuleList(self.new_norm() for _ in range(self.stack.sublayers))

    def open(self, x: Tensor) -> Any:
        """The embedded input (B, T, D) as a residual stream."""
        return x

    @abstractmethod
    def wiring(self) -> Wiring:
        """New wiring, with norms of its own, for one layer."""

    @abstractmethod
    def close(self, stream: Any) -> Tensor:
        """The stream as the stack's output (B, T, D), with the final norm if there is one."""

    def init_std(self, projection: str, linear: nn.Linear) -> float:
        """Standard deviation of the initial weights of a projection, such as `q_proj`."""
        return BASE_STD * (self.branch_gain if projection in ("o_proj", "down_proj") else 1.0)


def unbounded_branch_gain(stack: Stack) -> float:
    """GPT-2's gain for branches that add up with no norm between: 1 / √(their number), so that their sum is as one."""
    return (stack.sublayers * stack.num_layers) ** -0.5
