"""Positional encodings: one file for each option of the `encoding` axis."""

from txtrain.model.encoding.base import Encoding
from txtrain.model.encoding.none import NoEncoding

__all__ = ["Encoding", "NoEncoding"]
