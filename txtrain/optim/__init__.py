"""Optimizers. Each option is called with the built model and makes the parameter groups itself."""

from txtrain.optim.adamw import adamw
from txtrain.optim.half import HalfOptimizer, in_float32, is_small
from txtrain.optim.muon import Muon
from txtrain.optim.sgd import sgd

__all__ = ["HalfOptimizer", "Muon", "adamw", "in_float32", "is_small", "sgd"]
