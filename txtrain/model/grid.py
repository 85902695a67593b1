"""Positions on a grid, such as the patches of an image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Tokens that stand on a grid, row after row, and some before them that stand nowhere on it (a class token).

    Args:
        size: tokens along each axis, in training.
        prefix: tokens that come before those of the grid.
    """

    size: tuple[int, ...]
    prefix: int = 0

    @property
    def length(self) -> int:
        """Tokens in all."""
        return self.prefix + math.prod(self.size)

    def positions(self, size: tuple[int, ...], device: torch.device) -> Tensor:
        """Positions (1, T, axes) of a grid of `size`.

        They are integers if it is this grid. A finer or coarser one covers the same area, so its tokens have fractions
        of this grid's positions: what was learned at one resolution holds at another. The n-th token of the prefix is
        at -n on every axis.
        """
        axes = [_axis(new, old, device) for new, old in zip(size, self.size, strict=True)]
        if size != self.size:
            axes = [axis.float() for axis in axes]
        inside = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
        before = -torch.arange(1, self.prefix + 1, device=device, dtype=inside.dtype)
        return torch.cat((before[:, None].expand(-1, len(size)), inside))[None]


def on_grid(positions: Tensor) -> Tensor:
    """Whether each of positions (B, T, axes) is on the grid, (B, T)."""
    return ~off_axis(positions[..., 0])


def off_axis(place: Tensor) -> Tensor:
    """Whether positions along one axis are those of tokens that are not on the grid."""
    return place < -0.75  # the first of a finer grid is above -0.5


def _axis(new: int, old: int, device: torch.device) -> Tensor:
    """The middles of `new` equal parts of a length on which the middles of `old` parts are 0, 1, 2, ..."""
    steps = torch.arange(new, device=device)
    return steps if new == old else (steps + 0.5) * (old / new) - 0.5
