"""Fixed waves, added to the token vectors."""

from typing import Literal

import torch
from torch import Tensor

from txtrain.model.encoding.base import Encoding
from txtrain.model.encoding.frequencies import Frequencies
from txtrain.model.shape import Stack


class Sinusoidal(Encoding):
    """Sine and cosine waves of D/2 lengths (https://arxiv.org/abs/1706.03762, section 3.5).

    x[2i] += sin(p · base^(-2i/D)), x[2i + 1] += cos(p · base^(-2i/D)) at position p, which may be any, or the cosines
    in the second half: x[i] += sin, x[D/2 + i] += cos (the paper's code, Marian).

    Args:
        stack: what it serves; its width D is even.
        base: the longest wave is 2π · base tokens.
        layout: where the cosines are, `interleaved` with the sines or in the second `half`.
    """

    def __init__(
        self, *, stack: Stack, base: float = 10000.0, layout: Literal["interleaved", "half"] = "interleaved"
    ) -> None:
        super().__init__(stack=stack)
        if stack.dim % 2:
            raise ValueError(
                f"encoding=sinusoidal needs an even model.dim, got {stack.dim}: "
                f"set model.dim={stack.dim + 1} or encoding=learned"
            )
        if base <= 1:
            raise ValueError(f"encoding.base is {base}: give a number above 1, such as encoding.base=10000")
        self.interleaved = layout == "interleaved"
        self.frequencies = Frequencies(dim=stack.dim, theta=base)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        angles = positions[..., None].float() * self.frequencies.at(positions)
        waves = torch.stack((angles.sin(), angles.cos()), dim=-1 if self.interleaved else -2).flatten(-2)
        # The sum in float32 rounds once; waves rounded to bfloat16 would be the same for neighbouring positions.
        return (x + waves).to(x.dtype)
