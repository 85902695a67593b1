"""What an encoding makes of two positions, read off its hooks: alike vectors, what a rotation leaves, or a bias."""

from typing import Literal

import torch
from torch import Tensor

from txtrain.model.encoding.base import Encoding

Hook = Literal["embed", "rotate", "bias"]


@torch.no_grad()
def relations(encoding: Encoding, positions: Tensor) -> dict[Hook, Tensor]:
    """By the hook through which an encoding acts, what it makes of each query and key: (1 or H, T, T), float32.

    `embed`: the cosine of the vectors that are added. `rotate`: the inner product of a query and a key that are equal
    before they are turned, have length 1, and the same share of it in every dimension; the mean cosine of the angles
    between two positions, for RoPE. `bias`: what is added to the scores of each head.

    Args:
        encoding: of a stack; any, as nothing is asked of it but its hooks.
        positions: (1, T), or (1, T, axes) on a grid.
    """
    found: dict[Hook, Tensor] = {}
    stack, device = encoding.stack, positions.device
    vectors = encoding.embed(torch.zeros(1, positions.size(1), stack.dim, device=device), positions)[0].float()
    if vectors.any():
        unit = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        found["embed"] = (unit @ unit.T)[None]
    even = torch.full((1, 1, positions.size(1), stack.head_dim), stack.head_dim**-0.5, device=device)
    tables = encoding.tables(positions)
    query, key = (encoding.rotate(even, tables, role)[0, 0] for role in ("query", "key"))
    if not (torch.equal(query, even[0, 0]) and torch.equal(key, even[0, 0])):
        found["rotate"] = (query @ key.T)[None]
    bias = encoding.bias(positions, positions)
    if bias is not None:
        found["bias"] = bias[0].float()
    return found
