"""The sizes of a model: what the `model` group says, and what a stack of layers knows of itself."""

from dataclasses import dataclass

from txtrain.model.grid import Grid

MOST_LAYERS = 10_000  # each takes a millisecond and tens of kilobytes, even where its weights take no memory


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a transformer, shared by every task.

    Args:
        dim: width D of the residual stream.
        num_layers: layers in each stack.
        num_decoder_layers: layers of an encoder-decoder's decoder. Default: `num_layers`.
        num_heads: query heads H.
        num_kv_heads: key and value heads; fewer than `num_heads` is grouped-query attention (https://arxiv.org/abs/2305.13245),
            1 is multi-query attention (https://arxiv.org/abs/1911.02150). Default: `num_heads`.
        head_dim: width of a head. Default: `dim / num_heads`.
        ffn_dim: width of the feed-forward layer. Default: `4 * dim`, or the same number of parameters when it is gated.
        dropout: probability of zeroing an element of the embeddings, the attention weights and each sublayer's output.
        drop_path: probability of leaving out a sublayer of the last layer for a sample; it grows evenly from the first,
            where it is 0.
        vocab_size: rows of the embedding and the head, if some stand for no token. Default: one for each token.
        max_len: longest sequence that the weights were trained on before, if they were.
    """

    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    ffn_dim: int | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    num_decoder_layers: int | None = None
    vocab_size: int | None = None
    max_len: int | None = None

    def rows(self, num_tokens: int | None) -> int | None:
        """Rows of the embedding, for a tokenizer of so many tokens; None if there is none."""
        if self.vocab_size is not None and num_tokens is not None and num_tokens > self.vocab_size:
            raise ValueError(
                f"the tokenizer has {num_tokens} tokens and the model vectors for model.vocab_size={self.vocab_size}: "
                "use the tokenizer that the model was trained with, or leave model.vocab_size out"
            )
        return num_tokens if num_tokens is None else self.vocab_size or num_tokens

    def longest(self, seq_len: int) -> int:
        """The longest sequence of all training, if there is one of `seq_len` now."""
        return max(seq_len, self.max_len or 0)

    def __post_init__(self) -> None:
        optional = ("num_decoder_layers", "num_kv_heads", "head_dim", "ffn_dim", "max_len")
        for name in ("dim", "num_layers", "num_heads", *optional):
            value = getattr(self, name)
            if value is not None and value < 1:
                usual = 128 if name in ("dim", "ffn_dim") else 4
                raise ValueError(f"model.{name} is {value}: give at least 1, such as model.{name}={usual}")
        for name in ("num_layers", "num_decoder_layers"):
            if (getattr(self, name) or 0) > MOST_LAYERS:
                got = f"model.{name} is {getattr(self, name)}"
                raise ValueError(f"{got}: give at most {MOST_LAYERS}, such as model.{name}=12")
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                got = f"model.{name} is {getattr(self, name)}"
                raise ValueError(f"{got}: give a probability below 1, such as model.{name}=0.1")
        if self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(
                f"model.dim={self.dim} does not divide into model.num_heads={self.num_heads}: "
                f"change one of them or set model.head_dim={max(1, self.dim // self.num_heads)}"
            )
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(
                f"model.num_heads={self.num_heads} is no multiple of model.num_kv_heads={self.num_kv_heads}: "
                f"set model.num_kv_heads=1 (multi-query), {self.num_heads} (multi-head) or a divisor between"
            )


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What one stack of layers is made for; handed to the encoding, norm placement, attention and feed-forward.

    Args:
        shape: the model's sizes.
        causal: whether position i sees only positions up to i.
        cross: whether each layer also attends to another stack's output.
        max_len: longest sequence in training.
        other_layers: layers of the stack that this one is paired with, 0 if there is none.
        grid: where the tokens stand, if not in a row.
    """

    shape: Shape
    causal: bool
    max_len: int
    grid: Grid | None = None
    cross: bool = False
    other_layers: int = 0

    @property
    def axes(self) -> int:
        """Numbers in a position."""
        return 1 if self.grid is None else len(self.grid.size)

    @property
    def dim(self) -> int:
        return self.shape.dim

    @property
    def num_layers(self) -> int:
        return self.shape.num_layers

    @property
    def num_heads(self) -> int:
        return self.shape.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.shape.num_kv_heads or self.shape.num_heads

    @property
    def head_dim(self) -> int:
        return self.shape.head_dim or self.shape.dim // self.shape.num_heads

    @property
    def ffn_dim(self) -> int | None:
        return self.shape.ffn_dim

    @property
    def dropout(self) -> float:
        return self.shape.dropout

    @property
    def sublayers(self) -> int:
        """Residual branches in a layer: self-attention, cross-attention if any, feed-forward."""
        return 3 if self.cross else 2
