"""Floating-point operations of a forward and backward pass, from a model's sizes and the shape of its input.

A multiply-add is two operations, and only products of matrices count, as in PaLM
(https://arxiv.org/abs/2204.02311, appendix B): each takes one product forward and, where they train or hand on a
gradient, one each for its weight and its input. What gradient checkpointing computes again does not count. Padding
does, since the device computes it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from txtrain.model.attention import Attention
from txtrain.model.block import Block
from txtrain.model.embed import Input
from txtrain.model.lora.layers import Adapted, DoRA
from txtrain.model.patches import Pieces
from txtrain.model.spectrogram import Convolutions
from txtrain.model.transformer import TransformerStack


@dataclass(kw_only=True)
class Flow:
    """A sequence of vectors on its way through a model.

    Args:
        rows: sequences B.
        length: vectors T of each, padding included.
        trained: whether something before trains, so that what reads the vectors computes their gradient.
    """

    rows: int
    length: int
    trained: bool = False

    @property
    def vectors(self) -> int:
        return self.rows * self.length


def embedding_flops(embedding: Input, flow: Flow, frames: int = 0) -> float:
    """Of vectors made from an input; `frames` is how many a clip of sound has. The flow is then that behind it."""
    total = 0.0
    if isinstance(embedding, Pieces):
        pieces = flow.rows * (flow.length - len(embedding.prefix()))
        total = linear_flops(embedding.projection, pieces, trained=False)
    elif isinstance(embedding, Convolutions):
        first, second = (
            2 * flow.rows * places * layer.weight.numel() * (1 + layer.weight.requires_grad)
            for layer, places in ((embedding.conv1, frames), (embedding.conv2, flow.length))
        )
        total = first + second
        if trains(embedding.conv1.parameters()):
            total += 2 * flow.vectors * embedding.conv2.weight.numel()
    else:
        for module in embedding.modules():
            if isinstance(module, Adapted):
                total += 2 * flow.vectors * module.lora_B.numel() * 3
    flow.trained = flow.trained or trains(embedding.parameters())
    return total


def stack_flops(stack: TransformerStack, flow: Flow, memory: Flow | None = None) -> float:
    """Of a stack of layers; memory is what cross-attention reads. The flow is then that behind it."""
    total = 0.0
    for block in stack.blocks:
        assert isinstance(block, Block) and isinstance(block.attention, Attention)
        trained = flow.trained or trains(block.norm.parameters())
        total += _attention_flops(block.attention, flow, flow, trained, trained)
        trained = trained or trains(block.attention.parameters())
        if block.cross_attention is not None and memory is not None:
            assert isinstance(block.cross_attention, Attention)
            total += _attention_flops(block.cross_attention, flow, memory, trained, memory.trained)
            trained = trained or memory.trained or trains(block.cross_attention.parameters())
        for name, layer in block.ffn.named_modules():
            if isinstance(layer, nn.Linear):
                below = trained or (name == "down_proj" and trains(block.ffn.parameters()))
                total += linear_flops(layer, flow.vectors, trained=below)
        flow.trained = trained or trains(block.parameters())
    flow.trained = flow.trained or trains(stack.parameters())
    return total


def head_flops(head: nn.Module, vectors: int, *, trained: bool) -> float:
    """Of the head's layers on so many vectors."""
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    return sum(linear_flops(layer, vectors, trained=trained) for layer in layers)


def linear_flops(layer: nn.Linear, vectors: int, *, trained: bool) -> float:
    """Of a linear layer, with its adapter; `trained` says whether its input needs a gradient."""
    size = layer.in_features * layer.out_features
    total = 2.0 * vectors * size * (1 + trained + layer.weight.requires_grad)
    if isinstance(layer, Adapted):
        rank = len(layer.lora_A)
        total += 2 * vectors * rank * (layer.in_features * (2 + trained) + layer.out_features * 3)
        if isinstance(layer, DoRA):  # the lengths of the changed matrix's rows, without gradient
            total += 2 * rank * (size + rank * (layer.in_features + layer.out_features))
    return total


def _attention_flops(attention: Attention, flow: Flow, memory: Flow, trained: bool, memory_trained: bool) -> float:
    inputs = ((attention.q_proj, flow.vectors, trained),) + tuple(
        (projection, memory.vectors, memory_trained) for projection in (attention.k_proj, attention.v_proj)
    )
    total = sum(linear_flops(layer, vectors, trained=below) for layer, vectors, below in inputs)
    below = trained or memory_trained or any(trains(layer.parameters()) for layer, _, _ in inputs)
    seen = min(memory.length, attention.window or memory.length)
    total += 4 * flow.vectors * seen * attention.q_proj.out_features * (3 if below else 1)
    return total + linear_flops(attention.o_proj, flow.vectors, trained=below)


def trains(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether any of them does."""
    return any(parameter.requires_grad for parameter in parameters)
