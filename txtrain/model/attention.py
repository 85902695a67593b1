"""Multi-head, grouped-query and multi-query attention, over itself or over another sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from txtrain.model.cache import Held, KeysAndValues
from txtrain.model.encoding.base import Encoding, Role
from txtrain.model.kernels import Demands, Kernel, Scores, choose_kernel
from txtrain.model.norm.layer import RMSNorm
from txtrain.model.shape import Stack


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all layers of a stack share in one forward pass: made once, by `Context.build`."""

    kernel: Kernel
    scores: Scores
    prepared: dict[int | None, Any]
    encoding: Encoding | None
    tables: Any

    @classmethod
    def build(cls, layers: Sequence["Attention"], scores: Scores, x: Tensor, *, cached: bool = False) -> "Context":
        """Chooses the kernel, and computes tables, bias and masks, for the layers' input x."""
        encoding, device = scores.encoding, x.device.type
        autocast = not x.is_meta and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        demands = demands_of(
            layers,
            encoding,
            device=device,
            dtype=dtype,
            length=scores.num_keys,
            documents=scores.mask.documents is not None,
            padding=scores.mask.padding is not None,
            cached=cached,
        )
        kernel = choose_kernel(demands).kernel
        prepared = kernel.prepare(scores, {layer.window for layer in layers}, dtype)
        # In self-attention the keys that a pass projects are those of its queries' tokens; a cache holds rotated ones.
        tables = None if encoding is None else make_tables(encoding, scores)
        return cls(kernel=kernel, scores=scores, prepared=prepared, encoding=encoding, tables=tables)

    def rotate(self, x: Tensor, role: Role) -> Tensor:
        """Applies the rotary encoding; the identity in cross-attention."""
        return x if self.encoding is None else self.encoding.rotate(x, self.tables, role)


def make_tables(encoding: Encoding, scores: Scores) -> Any:
    """What the encoding's `rotate` needs in a forward pass."""
    if encoding.settled_len is None:
        return encoding.tables(scores.q_positions)
    return encoding.tables(scores.q_positions, scores.lengths())


class HeadNorm(RMSNorm):
    """An RMSNorm over each head by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, heads · head_dim) → the same."""
        return super().forward(x.unflatten(-1, (-1, *self.normalized_shape))).flatten(-2)


class Attention(nn.Module):
    """Scaled dot-product attention with H query heads (https://arxiv.org/abs/1706.03762).

    Args:
        stack: sizes; `num_kv_heads` below `num_heads` shares each key and value head among a group of query heads.
        cross: whether keys and values come from another sequence; a window then does not apply.
        layer: number of the layer.
        bias: whether the projections have biases; `qkv` is all but the output's (Qwen 2), `output` that
            alone.
        scale: factor on the scores. Default: 1 / √head_dim.
        qk_norm: an RMSNorm on queries and keys, of each `head` (https://arxiv.org/abs/2302.05442, Qwen 3) or of `all`
            heads of a token as one vector (OLMo 2, https://arxiv.org/abs/2501.00656).
        qk_norm_eps: added to its mean square.
        soft_cap: scores become soft_cap · tanh(score / soft_cap) (Gemma 2, https://arxiv.org/abs/2408.00118).
        window: how far back a query sees, counting itself; all the way if None. A list is repeated over the layers
            (Gemma 2: [4096, null]).
    """

    def __init__(
        self,
        *,
        stack: Stack,
        cross: bool = False,
        layer: int = 0,
        bias: bool | Literal["qkv", "output"] = False,
        scale: float | None = None,
        qk_norm: Literal["head", "all"] | None = None,
        qk_norm_eps: float = 1e-6,
        soft_cap: float | None = None,
        window: int | list[int | None] | None = None,
    ) -> None:
        super().__init__()
        if soft_cap is not None and soft_cap <= 0:
            raise ValueError(f"attention.soft_cap is {soft_cap}: give a positive number, such as attention.soft_cap=50")
        if qk_norm_eps <= 0:
            raise ValueError(
                f"attention.qk_norm_eps is {qk_norm_eps}: give a positive number, such as attention.qk_norm_eps=1e-6"
            )
        windows = window if isinstance(window, list) else [window]
        if not windows or any(size is not None and size < 1 for size in windows):
            raise ValueError(f"attention.window is {window}: give at least 1, such as attention.window=256")
        self.head_dim = stack.head_dim
        self.scale = stack.head_dim**-0.5 if scale is None else scale
        self.soft_cap = soft_cap
        self.window = None if cross else windows[layer % len(windows)]
        self.dropout = stack.dropout
        inner, kv_inner = stack.num_heads * stack.head_dim, stack.num_kv_heads * stack.head_dim
        in_bias, out_bias = bias in (True, "qkv"), bias in (True, "output")
        self.q_proj = nn.Linear(stack.dim, inner, bias=in_bias)
        self.k_proj = nn.Linear(stack.dim, kv_inner, bias=in_bias)
        self.v_proj = nn.Linear(stack.dim, kv_inner, bias=in_bias)
        self.o_proj = nn.Linear(inner, stack.dim, bias=out_bias)
        self.q_norm = self._new_norm(qk_norm, inner, qk_norm_eps)
        self.k_norm = self._new_norm(qk_norm, kv_inner, qk_norm_eps)

    def _new_norm(self, qk_norm: str | None, width: int, eps: float) -> nn.Module:
        if qk_norm is None:
            return nn.Identity()
        return HeadNorm(self.head_dim, eps=eps) if qk_norm == "head" else RMSNorm(width, eps=eps)

    def forward(self, x: Tensor, context: Context, memory: Tensor | None = None, held: Held | None = None) -> Tensor:
        """x (B, Q, D) attends to itself and what is held of earlier tokens, or to memory (B, K, D) → (B, Q, D)."""
        source = x if memory is None else memory

        def project() -> KeysAndValues:
            k = context.rotate(self._heads(self.k_norm(self.k_proj(source))), "key")
            return k, self._heads(self.v_proj(source))

        q = context.rotate(self._heads(self.q_norm(self.q_proj(x))), "query")
        k, v = project() if held is None else held(project)
        mixed = context.kernel.attend(
            q,
            k,
            v,
            context.prepared[self.window],
            scale=self.scale,
            soft_cap=self.soft_cap,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, heads · head_dim) → (B, heads, T, head_dim)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def demands_of(
    layers: Sequence[Attention],
    encoding: Encoding | None,
    *,
    device: str,
    dtype: torch.dtype,
    length: int,
    documents: bool = False,
    padding: bool = False,
    cached: bool = False,
) -> Demands:
    """What the layers of a stack, with its encoding (None in cross-attention), ask of a kernel for `length` keys."""
    layer = layers[0]
    windows = sorted({layer.window for layer in layers if layer.window is not None and layer.window < length})
    trained = encoding is not None and any(parameter.requires_grad for parameter in encoding.parameters())
    return Demands(
        device=device,
        dtype=dtype,
        head_dim=layer.head_dim,
        dropout=layer.dropout,
        soft_cap=layer.soft_cap,
        bias="none" if encoding is None or not encoding.has_bias else "learned" if trained else "fixed",
        bias_rule=encoding is not None and encoding.has_bias_rule,
        masks=(
            *(f"a window of {window}" for window in windows),
            *(["separate documents"] if documents else []),
            *(["padding"] if padding else []),
        ),
        cached=cached,
    )
