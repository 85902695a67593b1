"""The norm itself."""

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """x / RMS(x) · weight (https://arxiv.org/abs/1910.07467), computed in the precision of the weight.

    Under autocast branches hand over bfloat16 while the weight is float32, for which PyTorch has no fused kernel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., D)."""
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.eps)


class UnitOffsetRMSNorm(RMSNorm):
    """An RMSNorm that keeps its weight's difference from 1 (Gemma, https://arxiv.org/abs/2408.00118)."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., D)."""
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, 1 + self.weight, self.eps)
