"""The models, read top to bottom: a stack of layers, and the encoder, decoder and encoder-decoder made of it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from txtrain.model.attention import Attention, Context
from txtrain.model.block import Block
from txtrain.model.cache import NO_CACHE, Cache
from txtrain.model.embed import Embedding, Input
from txtrain.model.encoding.base import Encoding
from txtrain.model.head import Head
from txtrain.model.init import initialise_block
from txtrain.model.kernels import Scores
from txtrain.model.mask import Mask
from txtrain.model.norm.base import NormPlacement
from txtrain.model.pooling import PoolingHead
from txtrain.model.shape import Shape, Stack


class TransformerStack(nn.Module):
    """Layers with one positional encoding and one norm placement.

    Args:
        stack: what it is made for.
        encoding, norm, attention, ffn: each makes its part from `stack`.
    """

    def __init__(
        self,
        *,
        stack: Stack,
        encoding: Callable[..., Encoding],
        norm: Callable[..., NormPlacement],
        attention: Callable[..., Attention],
        ffn: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.causal = stack.causal
        self.encoding = encoding(stack=stack)
        self.norm = norm(stack=stack)
        blocks = [
            Block(stack=stack, norm=self.norm, attention=attention, ffn=ffn, layer=layer)
            for layer in range(stack.num_layers)
        ]
        for block in blocks:
            initialise_block(block, self.norm)
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        *,
        documents: Tensor | None = None,
        padding: Tensor | None = None,
        memory: Tensor | None = None,
        memory_padding: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """x (B, T, D), positions (B or 1, T), or (B or 1, T, axes) on a grid, documents and padding (B, T) → (B, T, D).

        With cross-attention, memory (B, K, D) and its padding (B, K), True for real tokens. With a cache, these T
        tokens come after those that it holds, and it holds them too from then on.
        """
        num_tokens, k_positions, layers = x.size(1), positions, [NO_CACHE] * len(self.blocks)
        if cache is not None:
            x, positions, k_positions, padding = cache.admit(x, positions, padding)
            memory, memory_padding = cache.remember(memory, memory_padding)
            layers = cache.layers
        mask = Mask(causal=self.causal, documents=documents, padding=padding)
        context = self._context(x, mask, positions, k_positions, self.encoding, cached=cache is not None)
        memory_context = None
        if memory is not None:
            memory_positions = torch.arange(memory.size(1), device=memory.device)[None]
            memory_mask = Mask(causal=False, padding=memory_padding)
            memory_context = self._context(x, memory_mask, positions, memory_positions, None, cached=cache is not None)
        stream = self.norm.open(x)
        for block, layer in zip(self.blocks, layers, strict=True):
            # A compiled block would be compiled again for every length of the cache.
            run = block if cache is None else block._call_impl
            stream = run(stream, context, memory, memory_context, layer)
        x = self.norm.close(stream)
        if cache is None:
            return x
        cache.commit(num_tokens)
        return x[:, -num_tokens:]

    def _context(
        self,
        x: Tensor,
        mask: Mask,
        q_positions: Tensor,
        k_positions: Tensor,
        encoding: Encoding | None,
        *,
        cached: bool,
    ) -> Context:
        scores = Scores(mask=mask, encoding=encoding, q_positions=q_positions, k_positions=k_positions)
        name = "cross_attention" if encoding is None else "attention"
        layers: list[Any] = [getattr(block, name) for block in self.blocks]
        return Context.build(layers, scores, x, cached=cached)


class Encoder(nn.Module):
    """Every token sees every token (BERT's body).

    Args:
        vocab_size: number of different tokens V; None if there are none.
        max_len: longest sequence in training, where the embedding does not say it.
        shape: sizes.
        embedding: makes an `Input` from `vocab_size`, `dim` and `dropout`.
        other_layers: layers of the decoder that reads this encoder's output, 0 if none.
        axes: encoding, norm, attention, ffn, each of which makes its part from a `Stack`.
    """

    causal = False

    def __init__(
        self,
        *,
        vocab_size: int | None = None,
        max_len: int | None = None,
        shape: Shape,
        embedding: Callable[..., Input],
        other_layers: int = 0,
        cross: bool = False,
        **axes: Callable[..., Any],
    ) -> None:
        super().__init__()
        if shape.num_decoder_layers is not None:
            raise ValueError(
                f"model.num_decoder_layers={shape.num_decoder_layers} is for encoder-decoders, and this model has one "
                f"stack: set model.num_layers={shape.num_decoder_layers} and leave it out"
            )
        self.embedding = embedding(vocab_size=shape.rows(vocab_size), dim=shape.dim, dropout=shape.dropout)
        if not (self.embedding.shared or other_layers):
            raise ValueError(
                "embedding.shared=false is for encoder-decoders, and this model has one stack: leave it out"
            )
        grid = self.embedding.grid
        longest = self.embedding.max_len or (max_len and shape.longest(max_len))
        if longest is None:
            raise ValueError("max_len is missing: give the longest sequence in training")
        stack = Stack(
            shape=shape,
            causal=self.causal,
            max_len=longest,
            grid=grid,
            cross=cross,
            other_layers=other_layers,
        )
        self.stack = TransformerStack(stack=stack, **axes)
        self.embedding.initialise()

    @property
    def max_len(self) -> int:
        """Longest sequence in training, that of earlier training too."""
        return self.stack.encoding.stack.max_len

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        types: Tensor | None = None,
        *,
        cache: Cache | None = None,
        **masks: Tensor | None,
    ) -> Tensor:
        """tokens (B, T), or images (B, C, height, width), and what `TransformerStack.forward` takes → (B, T, D).

        Positions count from 0 by default, or from where those in the cache end.
        """
        if positions is None:
            positions = self.embedding.positions(tokens)
            positions = positions if cache is None else cache.next_position + positions
        x = self.embedding(tokens, partial(self.stack.encoding.embed, positions=positions), types)
        return self.stack(x, positions, cache=cache, **masks)


class EncoderWithHead(Encoder):
    """Every token sees every token, and scores what stands in its place (BERT, https://arxiv.org/abs/1810.04805), or
    all of them together score labels (ViT, https://arxiv.org/abs/2010.11929).

    Args:
        vocab_size, max_len, shape, embedding, axes: as in `Encoder`.
        head: makes a head from `embedding`, `vocab_size`, `num_labels` and `dim`.
        num_labels: number of different labels L; None if there are none.
    """

    def __init__(
        self,
        *,
        shape: Shape,
        head: Callable[..., Head | PoolingHead],
        vocab_size: int | None = None,
        num_labels: int | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(vocab_size=vocab_size, shape=shape, **rest)
        self.head = head(
            embedding=self.embedding, vocab_size=shape.rows(vocab_size), num_labels=num_labels, dim=shape.dim
        )

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        types: Tensor | None = None,
        *,
        at: Tensor | None = None,
        **rest: Any,
    ) -> Tensor:
        """tokens (B, T), and what `Encoder.forward` takes → logits (B, T, V), or (B, L) of a head that pools.

        With `at` (B, T), booleans, a head that scores each token scores these N alone → (N, V).
        """
        x = super().forward(tokens, positions, types, **rest)
        return self.head(x, rest.get("padding")) if at is None else self.head(x[at])


class EncoderWithPairs(EncoderWithHead):
    """Scores tokens, and whether the second of two passages follows the first (BERT, https://arxiv.org/abs/1810.04805).

    Args:
        rest: as in `EncoderWithHead`.
    """

    def __init__(self, *, shape: Shape, **rest: Any) -> None:
        super().__init__(shape=shape, **rest)
        self.pairs = PoolingHead(embedding=self.embedding, dim=shape.dim, num_labels=2, transform="tanh")

    def forward(  # type: ignore[override]  # two scores
        self, tokens: Tensor, types: Tensor | None = None, *, at: Tensor, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """tokens, types, padding, and `at`, the N tokens to score (B, T) → logits (N, V), and of pairs (B, 2)."""
        x = Encoder.forward(self, tokens, types=types, padding=padding)
        return self.head(x[at]), self.pairs(x)


class Decoder(EncoderWithHead):
    """Every token sees those before it, and scores the next (GPT).

    Args:
        vocab_size, max_len, shape, embedding, head, axes: as in `EncoderWithHead`.
        cross: whether each layer attends to an encoder's output too.
    """

    causal = True

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        if not isinstance(self.head, Head):
            raise ValueError("this head scores no tokens, and the model predicts the next one: set head=default")

    def new_cache(self, *, batch: int, capacity: int = 256) -> Cache:
        """An empty cache for `batch` sequences, with memory for `capacity` tokens of each before it must grow."""
        num_layers, settled_len = len(self.stack.blocks), self.stack.encoding.settled_len
        return Cache(num_layers=num_layers, batch=batch, capacity=capacity, settled_len=settled_len)


class EncoderDecoder(nn.Module):
    """An encoder reads the source, and a decoder that attends to it writes the target
    (https://arxiv.org/abs/1706.03762).

    Args:
        vocab_size, max_len, shape, embedding, head, axes: as in `Encoder` and `Decoder`; both sides have them alike.
            `shape.num_decoder_layers` is the decoder's depth; `embedding.shared` is whether the token vectors are one.
        target_vocab_size: number of different tokens that the decoder knows, if they are others than the encoder's.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        shape: Shape,
        head: Callable[..., Head],
        target_vocab_size: int | None = None,
        **rest: Any,
    ) -> None:
        super().__init__()
        depth, decoder_depth = shape.num_layers, shape.num_decoder_layers or shape.num_layers
        one = replace(shape, num_decoder_layers=None)
        self.encoder = Encoder(vocab_size=vocab_size, shape=one, other_layers=decoder_depth, **rest)
        self.decoder = Decoder(
            vocab_size=target_vocab_size or vocab_size,
            shape=replace(one, num_layers=decoder_depth),
            other_layers=depth,
            cross=True,
            head=head,
            **rest,
        )
        source, target = self.encoder.embedding, self.decoder.embedding
        if source.shared and target_vocab_size is not None:
            raise ValueError(
                "source and target have vocabularies of their own, and embedding.shared=true is one set of token "
                "vectors for both: set embedding.shared=false"
            )
        if source.shared and isinstance(source, Embedding) and isinstance(target, Embedding):
            target.tokens.weight = source.tokens.weight
            if source.tied:
                self.decoder.head.linear.weight = source.tokens.weight

    def forward(self, source: Tensor, target: Tensor, source_padding: Tensor | None = None) -> Tensor:
        """source (B, S), target (B, T), source_padding (B, S), True for real tokens → logits (B, T, V)."""
        return self.decode(target, memory=self.encode(source, source_padding), memory_padding=source_padding)

    def encode(self, source: Tensor, padding: Tensor | None = None) -> Tensor:
        """source and its padding (B, S) → the memory (B, S, D) that `decoder` takes."""
        return self.encoder(source, padding=padding)

    def decode(
        self,
        target: Tensor,
        *,
        memory: Tensor | None = None,
        memory_padding: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """target (B, T), memory (B, S, D), which a cache has kept, and its padding (B, S) → logits (B, T, V)."""
        return self.decoder(target, memory=memory, memory_padding=memory_padding, cache=cache)

    def new_cache(self, *, batch: int, capacity: int = 256) -> Cache:
        """An empty cache for the decoder, which then needs the memory at its first pass only."""
        return self.decoder.new_cache(batch=batch, capacity=capacity)
