"""Positional encodings: one file for each option of the `encoding` axis."""

from txtrain.model.encoding.alibi import Alibi
from txtrain.model.encoding.base import Encoding
from txtrain.model.encoding.fire import Fire
from txtrain.model.encoding.kerple import Kerple
from txtrain.model.encoding.learned import Learned
from txtrain.model.encoding.none import NoEncoding
from txtrain.model.encoding.rope import Rope
from txtrain.model.encoding.sinusoidal import Sinusoidal
from txtrain.model.encoding.t5 import T5
from txtrain.model.encoding.xpos import XPos

__all__ = ["Alibi", "Encoding", "Fire", "Kerple", "Learned", "NoEncoding", "Rope", "Sinusoidal", "T5", "XPos"]
