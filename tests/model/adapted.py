"""Tiny models to put adapters on."""

from typing import Any

import torch
from torch import Tensor, nn

from txtrain.model import Decoder, Encoder, EncoderDecoder, Shape
from txtrain.model.attention import Attention
from txtrain.model.embed import Embedding
from txtrain.model.encoding import NoEncoding
from txtrain.model.ffn import FeedForward
from txtrain.model.head import Head
from txtrain.model.lora import DoRA, LoRAEmbedding, adapters
from txtrain.model.norm import PreNorm

VOCABULARY = 23
VARIANTS = ["lora", "rslora", "dora"]
KINDS = [Encoder, Decoder, EncoderDecoder]


def make_model(kind: type[nn.Module] = Decoder, *, bias: bool = True, **shape: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_layers": 2, "num_heads": 2} | shape
    return kind(
        vocab_size=VOCABULARY,
        max_len=8,
        shape=Shape(**sizes),
        embedding=Embedding,
        encoding=NoEncoding,
        norm=PreNorm,
        attention=lambda **rest: Attention(bias=bias, **rest),
        ffn=lambda **rest: FeedForward(bias=bias, **rest),
        **({} if kind is Encoder else {"head": Head}),
    )


def randomise_adapters(model: nn.Module) -> None:
    """As after some training."""
    for _, layer in adapters(model):
        nn.init.normal_(layer.lora_B, std=0.3)
        if isinstance(layer, LoRAEmbedding):
            nn.init.normal_(layer.lora_A, std=0.3)
        if isinstance(layer, DoRA):
            layer.lora_magnitude.data *= torch.empty_like(layer.lora_magnitude).uniform_(0.5, 2.0)


def inputs(kind: type[nn.Module] = Decoder) -> tuple[Tensor, ...]:
    tokens = torch.randint(VOCABULARY, (3, 8), generator=torch.Generator().manual_seed(1))
    return (tokens, tokens.flip(1)) if kind is EncoderDecoder else (tokens,)
