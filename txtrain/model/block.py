"""One layer: attention, [cross-attention,] feed-forward, joined by the norm placement."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from txtrain.model.attention import Attention, Context
from txtrain.model.cache import NO_CACHE, LayerCache
from txtrain.model.norm.base import NormPlacement, Sublayer
from txtrain.model.shape import Stack


class DropPath(nn.Module):
    """Leaves out a sublayer's branch for some samples of a batch, in training (https://arxiv.org/abs/1603.09382).

    Args:
        rate: the share of samples.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → the same; what stays is scaled up, so that the mean is too."""
        if not self.training or not self.rate:
            return x
        kept = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


class Block(nn.Module):
    """The sublayers of one layer. It is the unit of checkpointing, compilation and sharding.

    Args:
        stack: what the layer is made for.
        norm: the stack's placement, which wires the sublayers.
        attention: makes an `Attention` from `stack`, `cross` and `layer`.
        ffn: makes a feed-forward layer from `stack`.
        layer: its number.
    """

    def __init__(
        self,
        *,
        stack: Stack,
        norm: NormPlacement,
        attention: Callable[..., Attention],
        ffn: Callable[..., nn.Module],
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.attention = attention(stack=stack, cross=False, layer=layer)
        self.cross_attention = attention(stack=stack, cross=True, layer=layer) if stack.cross else None
        self.ffn = ffn(stack=stack)
        self.norm = norm.wiring()
        self.dropout = nn.Dropout(stack.dropout) if stack.dropout else nn.Identity()
        self.drop_path = DropPath(stack.shape.drop_path * layer / max(1, stack.num_layers - 1))

    def forward(
        self,
        stream: Any,
        context: Context,
        memory: Tensor | None = None,
        memory_context: Context | None = None,
        cache: LayerCache = NO_CACHE,
    ) -> Any:
        """Passes the residual stream through the layer. memory (B, K, D) is what cross-attention attends to."""
        sublayers = [self._branch(lambda x: self.attention(x, context, held=cache.own))]
        if self.cross_attention is not None:
            cross = self.cross_attention
            sublayers.append(self._branch(lambda x: cross(x, memory_context, memory, cache.cross)))
        sublayers.append(self._branch(self.ffn))
        return self.norm(stream, sublayers)

    def _branch(self, transform: Callable[[Tensor], Tensor]) -> Sublayer:
        def branch(x: Tensor, outer: Callable[[Tensor], Tensor] | None = None) -> Tensor:
            y = transform(x)
            return self.drop_path(self.dropout(y if outer is None else outer(y)))

        return branch
