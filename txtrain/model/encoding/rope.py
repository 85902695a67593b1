"""Rotary positions: pairs of query and key dimensions turn by an angle proportional to their position."""

from typing import Literal

import torch
from torch import Tensor

from txtrain.model.encoding.base import Encoding, Role
from txtrain.model.encoding.frequencies import angles_on_grid, scaled_frequencies
from txtrain.model.shape import Stack

Rotation = tuple[Tensor, Tensor]


class Rope(Encoding):
    """RoPE (https://arxiv.org/abs/2104.09864): scores depend on content and on the difference of positions only.

    The i-th pair (a, b) of dimensions at position p becomes (a·cos φ - b·sin φ, b·cos φ + a·sin φ), with
    φ = p · theta^(-2i/rotated).

    On a grid each axis turns an equal part of the pairs (axial, https://arxiv.org/abs/2403.13298), and tokens that are
    not on it are not turned.

    Args:
        stack: what it serves.
        theta: the longest wave is 2π · theta tokens.
        fraction: share of each head's dimensions that turns (GPT-NeoX, Phi).
        layout: `half` pairs dimension i with i + rotated/2 (Llama, GPT-NeoX), `interleaved` 2i with 2i + 1 (GPT-J).
        scaling: how frequencies are slowed for sequences longer than trained on; see `frequencies.py`.
        factor: new length / old length, for every scaling.
        original_len: the old length, for dynamic, yarn and llama3.
        band: turns within the old length below which a frequency is slowed, and above which it is kept, for yarn and
            llama3. Default: [1, 32] and [1, 4].
        attention_factor: factor on rotated queries and keys, for yarn. Default: 0.1 · ln(factor) + 1.
    """

    on_grids = True

    def __init__(
        self,
        *,
        stack: Stack,
        theta: float = 10000.0,
        fraction: float = 1.0,
        layout: Literal["half", "interleaved"] = "half",
        scaling: Literal["linear", "dynamic", "yarn", "llama3"] | None = None,
        factor: float | None = None,
        original_len: int | None = None,
        band: list[float] | None = None,
        attention_factor: float | None = None,
    ) -> None:
        super().__init__(stack=stack)
        if theta <= 1:
            raise ValueError(f"encoding.theta is {theta}: give a number above 1, such as encoding.theta=10000")
        if not 0 < fraction <= 1:
            raise ValueError(
                f"encoding.fraction is {fraction}: give a share above 0, up to 1, such as encoding.fraction=0.5"
            )
        self.rotated, parts = int(stack.head_dim * fraction), 2 * stack.axes
        if self.rotated % parts or not self.rotated:
            pairs, multiple = ("pairs", "even") if parts == 2 else ("pairs for each axis", f"a multiple of {parts}")
            raise ValueError(
                f"rotary encodings turn {pairs}, but of model.head_dim={stack.head_dim} dimensions "
                f"encoding.fraction={fraction:g} leaves {self.rotated}: change one so that the product is {multiple}, "
                f"such as model.head_dim={-(-stack.head_dim // parts) * parts} encoding.fraction=1"
            )
        if stack.grid is not None and scaling is not None:
            raise ValueError(
                f"encoding.scaling={scaling} is for longer sequences, and on a grid positions are scaled already: "
                "leave it out"
            )
        self.layout = layout
        self.frequencies = scaled_frequencies(
            scaling,
            dim=self.rotated // stack.axes,
            theta=theta,
            factor=factor,
            original_len=original_len,
            band=band,
            attention_factor=attention_factor,
        )

    @property
    def settled_len(self) -> int | None:
        return self.frequencies.settled_len

    def tables(self, positions: Tensor, lengths: Tensor | None = None) -> Rotation:
        """Cosines and signed sines, each (B or 1, 1, T, rotated) in float32."""
        if self.stack.grid is None:
            angles = positions[..., None].float() * self.frequencies.at(positions, lengths)
        else:
            angles = angles_on_grid(self.frequencies, positions)
        cos, sin = angles.cos() * self.frequencies.gain, angles.sin() * self.frequencies.gain
        return self._pairs(cos, cos)[:, None], self._pairs(-sin, sin)[:, None]

    def rotate(self, x: Tensor, tables: Rotation, role: Role) -> Tensor:
        """Three operations whatever the layout: x · cos + partner · (∓ sin).

        They run in float32, the tables' type: angles rounded to bfloat16 would differ between positions the same
        distance apart. The result is rounded once.
        """
        cos, sin = tables
        whole = self.rotated == x.size(-1)
        turning = x if whole else x[..., : self.rotated]
        turned = torch.addcmul(turning * cos, self._partners(turning), sin).to(x.dtype)
        return turned if whole else torch.cat((turned, x[..., self.rotated :]), dim=-1)

    def _pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """Values for the first and the second member of each pair, put where the layout has them."""
        if self.layout == "half":
            return torch.cat((first, second), dim=-1)
        return torch.stack((first, second), dim=-1).flatten(-2)

    def _partners(self, x: Tensor) -> Tensor:
        """Each dimension's partner in its place."""
        if self.layout == "half":
            return x.roll(self.rotated // 2, dims=-1)
        return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
