"""Transformers in plain PyTorch, usable without the rest of txtrain."""

from txtrain.model.cache import Cache
from txtrain.model.shape import Shape, Stack
from txtrain.model.transformer import Decoder, Encoder, EncoderDecoder, EncoderWithHead, EncoderWithPairs

__all__ = ["Cache", "Decoder", "Encoder", "EncoderDecoder", "EncoderWithHead", "EncoderWithPairs", "Shape", "Stack"]
