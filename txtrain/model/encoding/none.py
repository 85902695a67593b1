"""No positional encoding."""

from txtrain.model.encoding.base import Encoding


class NoEncoding(Encoding):
    """Leaves order to the causal mask (NoPE, https://arxiv.org/abs/2305.19466); an encoder sees a bag of tokens."""

    on_grids = True
