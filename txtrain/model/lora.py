"""Low-rank adapters on the linear layers of a built model, and merging them into its weights."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txtrain.model.block import Block

Variant = Literal["lora", "rslora", "dora"]


class LoRALinear(nn.Linear):
    """A frozen linear layer and a trained low-rank change of it (https://arxiv.org/abs/2106.09685).

    y = W x + b + s · B A dropout(x), with W (out, in), A (r, in), B (out, r). B starts at zero, so y starts unchanged.
    Weight and bias are the given layer's own parameters, under the same names.

    Args:
        linear: the layer to adapt.
        rank: r.
        scale: s.
        dropout: probability of zeroing an element of the adapter's input.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, scale: float, dropout: float = 0.0) -> None:
        has_bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias=has_bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.weight.requires_grad_(False)
        if has_bias:
            self.bias.requires_grad_(False)
        self.scale = scale
        self.dropout = dropout
        self.original: Tensor | None = None  # the weight without the adapter, while merged
        self.lora_A = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        y = F.linear(x, self.weight, self.bias)
        return y if self.original is not None else y + self._change(x)

    def merged_weight(self) -> Tensor:
        """W + s · B A (out, in), in float32 at least."""
        weight, low, high = self._wide()
        return weight + self.scale * (high @ low)

    def merge(self) -> None:
        """Puts the adapter into the weight, for generation and export: not to be trained or saved in this state."""
        assert self.original is None, "merged already"
        with torch.no_grad(), self._without_autocast():
            self.original = self.weight.clone()
            self.weight.copy_(self.merged_weight())

    def unmerge(self) -> None:
        """Puts back the very weight that was there; subtracting would leave rounding errors."""
        assert self.original is not None, "not merged"
        with torch.no_grad():
            self.weight.copy_(self.original)
        self.original = None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={len(self.lora_A)}, scale={self.scale:g}, dropout={self.dropout}"

    def _change(self, x: Tensor) -> Tensor:
        """s · B A dropout(x); scaled where it is narrow."""
        narrow = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A)
        return F.linear(self.scale * narrow, self.lora_B)

    def _wide(self) -> tuple[Tensor, Tensor, Tensor]:
        """W, A and B in float32 at least."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return self.weight.to(dtype), self.lora_A.to(dtype), self.lora_B.to(dtype)

    def _without_autocast(self) -> AbstractContextManager[None]:
        device = self.weight.device.type
        return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class DoRALinear(LoRALinear):
    """LoRA that trains the length of each row apart from its direction (https://arxiv.org/abs/2402.09353).

    y = m ⊙ (V x) / ‖V‖ + b with V = W + s · B A and ‖V‖ (out,) the lengths of its rows; m (out,) starts as ‖W‖.
    Gradients take ‖V‖ as constant (section 4.3 of the paper).
    """

    def __init__(self, linear: nn.Linear, *, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(linear, rank=rank, scale=scale, dropout=dropout)
        self.lora_magnitude = nn.Parameter(self._lengths().to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        if self.original is not None:
            return F.linear(x, self.weight, self.bias)
        y = F.linear(x, self.weight) + self._change(x)
        y = y * (self.lora_magnitude / self._lengths()).to(y.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def merged_weight(self) -> Tensor:
        """m ⊙ V / ‖V‖ (out, in), in float32 at least."""
        moved = super().merged_weight()
        return moved * (self.lora_magnitude / self._lengths())[:, None]

    @torch.no_grad()
    def _lengths(self) -> Tensor:
        """‖V‖ without V, which is as large as W: ‖w + s b A‖² = ‖w‖² + 2 s b (w Aᵀ) + s² b (A Aᵀ) b for a row w, b."""
        with self._without_autocast():
            dtype = torch.promote_types(self.weight.dtype, torch.float32)
            low, high = self.lora_A.to(dtype), self.scale * self.lora_B.to(dtype)
            square = torch.linalg.vector_norm(self.weight, dim=1, dtype=dtype).square()
            across = (self.weight @ self.lora_A.T).to(dtype)
            square = square + (high * (2 * across + high @ (low @ low.T))).sum(1)
            return square.clamp_min(torch.finfo(dtype).tiny).sqrt()  # a row of zeros stays one


class LoRA:
    """Which layers get adapters, and of what kind; `apply` adds them to a built model.

    Args:
        rank: rank r of every adapter; 0 adds none.
        alpha: strength; the scale s is alpha / r, or alpha / √r for rslora.
        dropout: probability of zeroing an element of an adapter's input.
        targets: `all` linear layers of the blocks, or the end of a name (`q_proj`, `cross_attention.q_proj`), a glob
            over whole names (`*.ffn.*`), or a list of these.
        variant: lora, rslora (https://arxiv.org/abs/2312.03732) or dora.
    """

    def __init__(
        self,
        *,
        rank: int = 0,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: str | list[str] = "all",
        variant: Variant = "lora",
    ) -> None:
        if rank < 0:
            raise ValueError(f"lora.rank is {rank}: give 0 for no adapters, or a rank such as lora.rank=8")
        if alpha <= 0:
            raise ValueError(f"lora.alpha is {alpha}: give a positive number, such as lora.alpha=16")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"lora.dropout is {dropout}: give a probability below 1, such as lora.dropout=0.1")
        if not targets:
            raise ValueError("lora.targets is empty: set lora.targets=all, or lora.rank=0 for no adapters")
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.targets = [targets] if isinstance(targets, str) else list(targets)
        self.variant = variant

    @property
    def scale(self) -> float:
        """s, the factor on B A."""
        return self.alpha / (self.rank**0.5 if self.variant == "rslora" else self.rank)

    def apply(self, model: nn.Module, adapt_only: bool = False) -> None:
        """Replaces the targeted layers of a model whose base weights are in place.

        They freeze and learn through adapters. What has none trains in full, or with `adapt_only` freezes too.
        """
        if self.rank == 0:
            return
        assert not any(adapters(model)), "the model has adapters already"
        targeted = self.matches(model)
        if adapt_only:
            model.requires_grad_(False)
        layer = DoRALinear if self.variant == "dora" else LoRALinear
        for name, linear in targeted.items():
            parent, _, child = name.rpartition(".")
            adapted = layer(linear, rank=self.rank, scale=self.scale, dropout=self.dropout)
            setattr(model.get_submodule(parent), child, adapted)

    def matches(self, model: nn.Module) -> dict[str, nn.Linear]:
        """The linear layers that the targets mean, by name."""
        linears = _linears(model)
        in_blocks = [
            f"{block_name}.{name}"
            for block_name, block in model.named_modules()
            if isinstance(block, Block)
            for name in _linears(block)
        ]
        chosen: set[str] = set()
        for target in self.targets:
            found = in_blocks if target == "all" else [name for name in linears if _matches(name, target)]
            if not found:
                raise ValueError(_no_match(target, list(linears)))
            chosen.update(found)
        return {name: linear for name, linear in linears.items() if name in chosen}


def adapters(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Names and layers with an adapter."""
    return ((name, part) for name, part in model.named_modules() if isinstance(part, LoRALinear))


def merge(model: nn.Module) -> None:
    """Puts all adapters into the weights; refused where another layer uses a weight too, which would change with it."""
    owners: Counter[Tensor] = Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
    for name, layer in adapters(model):
        if owners[layer.weight] > 1:
            raise ValueError(
                f"the adapter of {name} cannot be merged, its weight is tied to another layer's: "
                "train with embedding.tied=false, or leave it out of lora.targets"
            )
    for _, layer in adapters(model):
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Takes all adapters out of the weights again, exactly."""
    for _, layer in adapters(model):
        layer.unmerge()


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """How many parameters there are, and how many of them train; tied ones count once, sharded ones whole."""
    # DeepSpeed leaves an empty tensor where a shard was cut off, and notes how large the whole is.
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}


def _matches(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}") or fnmatchcase(name, target)


def _no_match(target: str, linears: list[str]) -> str:
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in linears))
    near = get_close_matches(target, ends + linears, n=3, cutoff=0.5)
    offer = f"nearest are {', '.join(near)}" if near else f"there are {', '.join(ends)}"
    return (
        f"lora.targets has {target!r}, which matches no linear layer; {offer}: set lora.targets={(near or ['all'])[0]}"
    )
