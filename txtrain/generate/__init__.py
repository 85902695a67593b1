"""Text out of a trained model."""

from txtrain.generate.sample import sample

__all__ = ["sample"]
