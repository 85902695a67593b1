"""Fixed waves, added to the token vectors."""

from typing import Literal

import torch
from torch import Tensor

from txtrain.model.encoding.base import Encoding
from txtrain.model.encoding.frequencies import Frequencies, angles_on_grid
from txtrain.model.grid import on_grid
from txtrain.model.shape import Stack


class Sinusoidal(Encoding):
    """Sine and cosine waves of D/2 lengths (https://arxiv.org/abs/1706.03762, section 3.5).

    x[2i] += sin(p · base^(-2i/D)), x[2i + 1] += cos(p · base^(-2i/D)) at position p, which may be any, or the cosines
    in the second half: x[i] += sin, x[D/2 + i] += cos (the paper's code, Marian).

    On a grid each axis has an equal part of the lengths, which are D/2 / axes then, and nothing is added to tokens that
    are not on it (MAE, https://arxiv.org/abs/2111.06377).

    Args:
        stack: what it serves; its width D is even, on a grid a multiple of 2 · axes.
        base: the longest wave is 2π · base tokens.
        layout: where the cosines are, `interleaved` with the sines or in the second `half`.
    """

    on_grids = True
    scales_embedding = True

    def __init__(
        self, *, stack: Stack, base: float = 10000.0, layout: Literal["interleaved", "half"] = "interleaved"
    ) -> None:
        super().__init__(stack=stack)
        parts = 2 * stack.axes
        if stack.dim % parts:
            wanted = "an even model.dim" if parts == 2 else f"a model.dim that is a multiple of {parts}"
            raise ValueError(
                f"encoding=sinusoidal needs {wanted}, got {stack.dim}: "
                f"set model.dim={-(-stack.dim // parts) * parts} or encoding=learned"
            )
        if base <= 1:
            raise ValueError(f"encoding.base is {base}: give a number above 1, such as encoding.base=10000")
        self.interleaved = layout == "interleaved"
        self.frequencies = Frequencies(dim=stack.dim // stack.axes, theta=base)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.stack.grid is None:
            angles = positions[..., None].float() * self.frequencies.at(positions)
        else:
            angles = angles_on_grid(self.frequencies, positions)
        waves = torch.stack((angles.sin(), angles.cos()), dim=-1 if self.interleaved else -2).flatten(-2)
        if self.stack.grid is not None:
            waves = waves * on_grid(positions)[..., None]
        # The sum in float32 rounds once; waves rounded to bfloat16 would be the same for neighbouring positions.
        return (x + waves).to(x.dtype)
