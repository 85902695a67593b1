"""Rotary positions whose scores fade with distance."""

from typing import Any, Literal

import torch
from torch import Tensor

from txtrain.model.encoding.base import Role
from txtrain.model.encoding.rope import Rope
from txtrain.model.shape import Stack


class XPos(Rope):
    """xPos (https://arxiv.org/abs/2212.10554): RoPE times ζ_i^((p - q) / scale_base) for each pair i.

    Queries are multiplied by ζ_i^(p / scale_base) and keys divided, with ζ_i = (2i / head_dim + gamma) / (1 + gamma).
    Looking ahead the factor explodes instead of fading, so only causal stacks may use it.

    Args:
        stack: what it serves.
        theta, layout: as in `Rope`.
        scale_base: the larger, the slower scores fade.
        gamma: the larger, the less the pairs differ in how fast they fade.
    """

    def __init__(
        self,
        *,
        stack: Stack,
        theta: float = 10000.0,
        scale_base: float = 512.0,
        gamma: float = 0.4,
        layout: Literal["half", "interleaved"] = "half",
    ) -> None:
        super().__init__(stack=stack, theta=theta, layout=layout)
        if not stack.causal:
            raise ValueError(
                "encoding=xpos is for decoders only, since its scores explode looking ahead: set encoding=rope"
            )
        if scale_base <= 0:
            raise ValueError(
                f"encoding.scale_base is {scale_base}: give a positive number, such as encoding.scale_base=512"
            )
        if gamma <= 0:
            raise ValueError(f"encoding.gamma is {gamma}: give a positive number, such as encoding.gamma=0.4")
        self.scale_base, self.gamma = scale_base, gamma

    def tables(self, positions: Tensor, lengths: Tensor | None = None) -> Any:
        cos, sin = super().tables(positions, lengths)
        grown = self._growth(positions)
        return {"query": (cos * grown, sin * grown), "key": (cos / grown, sin / grown)}

    def rotate(self, x: Tensor, tables: Any, role: Role) -> Tensor:
        return super().rotate(x, tables[role], role)

    def _growth(self, positions: Tensor) -> Tensor:
        """ζ^(position / scale_base), (B or 1, 1, T, head_dim).

        Positions count from the middle of the training length, which cancels in the score and halves the exponents.
        """
        index = torch.arange(0, self.rotated, 2, device=positions.device).float()
        zeta = (index / self.rotated + self.gamma) / (1 + self.gamma)
        exponent = (positions - self.stack.max_len // 2)[:, None, :, None].float() / self.scale_base
        return self._pairs(zeta, zeta) ** exponent
