"""Adapters that start as the main part of the weight that they adapt, which is taken out of it."""

from typing import Literal

import torch
from torch import Tensor

Init = Literal["kaiming", "pissa", "pissa_niter_16", "olora"]


def principal(matrix: Tensor, rank: int, scale: float, init: Init) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) of a matrix (out, in), in float32.

    - pissa: s · B A is the best approximation of rank r, split evenly (https://arxiv.org/abs/2404.02948), by a whole
      singular value decomposition; with pissa_niter_16 by a fast one in 16 passes, of which the largest values come
      out nearly exact.
    - olora: B A is Q R with r orthonormal columns Q (https://arxiv.org/abs/2406.01775).
    """
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    if init == "olora":
        high, low = torch.linalg.qr(matrix)
        return low[:rank].contiguous(), high[:, :rank].contiguous()
    if init == "pissa":
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        left, values, right = left[:, :rank], values[:rank], right[:rank]
    else:
        left, values, right = torch.svd_lowrank(matrix, rank, niter=16)
        right = right.T
    root = (values / scale).sqrt()
    return root[:, None] * right, left * root
