"""txtrain trains transformers in which every technique is a config axis."""

__version__ = "0.1.0"
