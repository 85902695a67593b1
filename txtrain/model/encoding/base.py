"""What every positional encoding is: three places in the model where positions can enter."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from txtrain.model.grid import off_axis
from txtrain.model.shape import Stack

Role = Literal["query", "key"]
Axes = Sequence[Tensor]


class Encoding(nn.Module):
    """How a stack of layers knows the order of its tokens. One module serves all layers of the stack.

    The model calls every hook unconditionally and each is the identity by default, so an option overrides only those
    that it uses: `embed` (learned, sinusoidal), `tables` with `rotate` (the rotary family), or `bias_rule` (the bias
    family). Cross-attention relates two different sequences, so neither `rotate` nor `bias` is called there.

    Positions are integers; packing restarts them at each document. On a grid (`stack.grid`) they have one more
    dimension, the axes, and may be fractions: see `Grid.positions`.
    """

    on_grids: ClassVar[bool] = False
    """Whether it knows positions on a grid."""
    scales_embedding: ClassVar[bool] = False
    """Whether its paper multiplies token vectors by √D before positions are added: the default of `embedding.scale`."""

    def __init__(self, *, stack: Stack) -> None:
        super().__init__()
        if stack.grid is not None and not self.on_grids:
            name = type(self).__name__.lower()
            raise ValueError(f"encoding={name} knows no positions on a grid: set encoding=learned or encoding=rope")
        self.stack = stack

    @property
    def settled_len(self) -> int | None:
        """Positions from here on change what `tables` are for earlier tokens; None: none do."""
        return None

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        """Adds positions to token embeddings. x (B, T, D), positions (B or 1, T) → (B, T, D)."""
        return x

    def tables(self, positions: Tensor, lengths: Tensor | None = None) -> Any:
        """What `rotate` needs of positions (B or 1, T): made once in a forward pass for all layers, in float32.

        An encoding with a `settled_len` gets lengths (B or 1, T) too: of the sequence or document that each position
        belongs to, without padding.
        """
        return None

    def rotate(self, x: Tensor, tables: Any, role: Role) -> Tensor:
        """Turns queries or keys by their position. x (B, H, T, head_dim), tables from `tables` → the same shape."""
        return x

    def bias_rule(self, head: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
        """What is added to the score of one query and key, elementwise over integer tensors that broadcast.

        The same rule makes the whole bias in `bias` and serves kernels that never hold it (FlexAttention).
        """
        raise NotImplementedError

    def grid_rule(self, head: Tensor, q_position: Axes, k_position: Axes) -> Tensor:
        """The same on a grid, of positions that are given axis by axis.

        Unless an option says otherwise, it is the rule of a row for the straight distance of the two, and nothing to
        and from tokens that are not on the grid. Right for rules that depend on distance alone.
        """
        pairs = list(zip(q_position, k_position, strict=True))
        distance = torch.stack([(q - k).float().square() for q, k in pairs]).sum(0).sqrt()
        both = off_axis(pairs[0][0]).logical_or(off_axis(pairs[0][1])).logical_not()
        return torch.where(both, self.bias_rule(head, distance, torch.zeros_like(distance)), 0.0)

    @property
    def has_bias(self) -> bool:
        """Whether scores get a bias."""
        return self.has_bias_rule

    @property
    def has_bias_rule(self) -> bool:
        """Whether that bias has an elementwise form."""
        return type(self).bias_rule is not Encoding.bias_rule

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor | None:
        """The bias of all scores. q_positions (B or 1, Q), k_positions (B or 1, K), on a grid (..., axes) →
        (B or 1, H, Q, K), or None."""
        if not self.has_bias_rule:
            return None
        heads = torch.arange(self.stack.num_heads, device=q_positions.device)[None, :, None, None]
        if self.stack.grid is not None:
            q_axes = [place[:, None, :, None] for place in q_positions.unbind(-1)]
            return self.grid_rule(heads, q_axes, [place[:, None, None, :] for place in k_positions.unbind(-1)])
        return self.bias_rule(heads, q_positions[:, None, :, None], k_positions[:, None, None, :])
