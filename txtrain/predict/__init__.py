"""What trained models say of new inputs: `txtrain predict`."""

from txtrain.predict.predictor import Predictor

__all__ = ["Predictor"]
