"""Initial weights."""

from torch import nn

from txtrain.model.block import Block
from txtrain.model.norm.base import BASE_STD, NormPlacement


def initialise_block(block: Block, norm: NormPlacement) -> None:
    """Normal weights, as wide as the norm placement says for each projection; zero biases."""
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=norm.init_std(name.rsplit(".", 1)[-1], module))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_embedding(embedding: nn.Embedding, scale: float = 1.0) -> None:
    """Normal vectors; those that the model multiplies by √D start at 1/√D (https://arxiv.org/abs/1706.03762)."""
    nn.init.normal_(embedding.weight, std=BASE_STD if scale == 1.0 else 1.0 / scale)
