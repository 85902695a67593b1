"""Norm placements: one file for each option of the `norm` axis."""

from txtrain.model.norm.base import NormPlacement, Wiring
from txtrain.model.norm.deepnorm import DeepNorm
from txtrain.model.norm.layer import RMSNorm
from txtrain.model.norm.parallel import ParallelNorm
from txtrain.model.norm.post import PostNorm
from txtrain.model.norm.pre import PreNorm
from txtrain.model.norm.reordered import ReorderedNorm
from txtrain.model.norm.residual import ResiDual
from txtrain.model.norm.sandwich import SandwichNorm

__all__ = [
    "DeepNorm",
    "NormPlacement",
    "ParallelNorm",
    "PostNorm",
    "PreNorm",
    "RMSNorm",
    "ReorderedNorm",
    "ResiDual",
    "SandwichNorm",
    "Wiring",
]
