"""Norm placements: one file for each option of the `norm` axis."""

from txtrain.model.norm.base import NormPlacement
from txtrain.model.norm.pre import PreNorm

__all__ = ["NormPlacement", "PreNorm"]
