"""Which layers of a model get adapters, and of what kind: the `lora` group."""

from typing import Literal

import torch
from torch import nn

from txtrain.model.head import LABELLING
from txtrain.model.lora import nf4
from txtrain.model.lora.initial import Init
from txtrain.model.lora.layers import Adapted, DoRAEmbedding, DoRALinear, LoRAEmbedding, LoRALinear
from txtrain.model.lora.merging import adapters, check_mergeable, tied
from txtrain.model.lora.targets import Layers, check_pattern, layers_for, of_pattern

Variant = Literal["lora", "rslora", "dora"]
IN_4_BITS = "lora.base_dtype=nf4"


class LoRA:
    """Which layers get adapters, and of what kind; `apply` adds them to a model, `quantise` then narrows its base.

    Args:
        rank: rank r of every adapter; 0 adds none.
        alpha: strength; the scale s is alpha / r, or alpha / √r for rslora.
        dropout: probability of zeroing an element of an adapter's input.
        targets: `all` linear layers of the blocks, or the end of a name (`q_proj`, `cross_attention.q_proj`,
            `embedding.tokens`, `head.linear`), a glob over whole names (`*.ffn.*`), or a list of these.
        layers: the blocks whose layers are meant: a number, a range such as `4-7`, or a list; all if None.
        rank_pattern, alpha_pattern: another rank or alpha where a target, written as in `targets`, is met.
        variant: lora, rslora (https://arxiv.org/abs/2312.03732) or dora.
        init: how adapters start: with no change (kaiming), or as the main part of the weight (see `principal`).
        b_lr_ratio: learning rate of B as a multiple of A's (LoRA+, https://arxiv.org/abs/2402.12354).
        base_dtype: the type in which layers with adapters hold their own weight; as it is if None. nf4 is of 4 bits
            (https://arxiv.org/abs/2305.14314) and for linear layers.
        merge_every: optimizer steps from one merge of adapters into their weights to the next, after which they start
            anew (ReLoRA, https://arxiv.org/abs/2307.05695); 0 merges never.
        merge_warmup: steps in which the learning rate rises again after a merge.
    """

    def __init__(
        self,
        *,
        rank: int = 0,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: str | list[str] = "all",
        layers: Layers = None,
        rank_pattern: dict[str, int] | None = None,
        alpha_pattern: dict[str, float] | None = None,
        variant: Variant = "lora",
        init: Init = "kaiming",
        b_lr_ratio: float = 1.0,
        base_dtype: Literal["bfloat16", "float32", "nf4"] | None = None,
        merge_every: int = 0,
        merge_warmup: int = 10,
    ) -> None:
        self.rank, self.alpha, self.dropout, self.variant = rank, alpha, dropout, variant
        self.targets = [targets] if isinstance(targets, str) else list(targets)
        self.layers = layers
        self.rank_pattern, self.alpha_pattern = rank_pattern or {}, alpha_pattern or {}
        self.init, self.b_lr_ratio = init, b_lr_ratio
        self.quantises = base_dtype == "nf4"
        self.base_dtype: torch.dtype | None = getattr(torch, base_dtype) if base_dtype and not self.quantises else None
        self.merge_every, self.merge_warmup = merge_every, merge_warmup
        self._check(base_dtype)

    def _check(self, base_dtype: str | None) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank is {self.rank}: give 0 for no adapters, or a rank such as lora.rank=8")
        if self.alpha <= 0:
            raise ValueError(f"lora.alpha is {self.alpha}: give a positive number, such as lora.alpha=16")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout is {self.dropout}: give a probability below 1, such as lora.dropout=0.1")
        if not self.targets or not all(self.targets):
            raise ValueError("lora.targets is empty: set lora.targets=all")
        for key in ("rank_pattern", "alpha_pattern"):
            for target, value in getattr(self, key).items():
                if value <= 0:
                    raise ValueError(
                        f"lora.{key} is {value} for {target}: give a positive one, lora.{key}={{{target}:8}}"
                    )
        if self.b_lr_ratio <= 0:
            raise ValueError(
                f"lora.b_lr_ratio is {self.b_lr_ratio}: give a positive number, such as lora.b_lr_ratio=16"
            )
        if self.merge_every < 0 or self.merge_warmup < 0:
            raise ValueError(
                f"lora.merge_every is {self.merge_every} and lora.merge_warmup is {self.merge_warmup}: give 0 or more "
                "steps, such as lora.merge_every=1000 lora.merge_warmup=50"
            )
        if self.merge_every and (self.variant == "dora" or self.init != "kaiming"):
            raise ValueError(
                f"lora.merge_every is {self.merge_every}, which starts adapters anew with no change of the weight: "
                "leave it out, or set lora.variant=lora lora.init=kaiming"
            )
        if base_dtype and not self.rank:
            raise ValueError(
                f"lora.base_dtype={base_dtype} is of weights under adapters, and lora.rank=0 adds none: set lora.rank=8"
            )
        if self.quantises and not self.keeps_base:
            do = "lora.merge_every=0" if self.merge_every else f"lora.init=kaiming instead of {self.init}"
            raise ValueError(f"{IN_4_BITS} holds weights that never change: set {do}, or lora.base_dtype=bfloat16")

    @property
    def keeps_base(self) -> bool:
        """Whether the layers' own weights stay those that they were given."""
        return self.init == "kaiming" and not self.merge_every

    def scale(self, name: str) -> float:
        """s of a layer's adapter, the factor on B A."""
        rank, alpha = self._rank(name), of_pattern(self.alpha_pattern, name, self.alpha)
        return alpha / (rank**0.5 if self.variant == "rslora" else rank)

    def rewarm(self, step: int) -> float:
        """The factor on the learning rate at a step: it rises anew after each merge."""
        if not self.rank or not self.merge_every or step < self.merge_every:
            return 1.0
        return min(1.0, (step % self.merge_every + 1) / (self.merge_warmup + 1))

    def apply(self, model: nn.Module, adapt_only: bool = False) -> None:
        """Replaces the targeted layers of a model whose base weights are in place.

        They freeze and learn through adapters. What has none trains in full, or with `adapt_only` freezes too, but for
        the heads that score labels, which are made for the data.
        """
        if self.rank == 0:
            return
        assert not any(adapters(model)), "the model has adapters already"
        targeted = self.matches(model)
        check_pattern("rank_pattern", self.rank_pattern, list(targeted))
        check_pattern("alpha_pattern", self.alpha_pattern, list(targeted))
        self._check_ranks(targeted)
        if not self.keeps_base:
            check_mergeable(model, targeted)
        if self.quantises:
            self._check_quantisable(model, targeted, adapt_only)
        if adapt_only:
            model.requires_grad_(False)
            for module in model.modules():
                if getattr(module, "scores", None) in LABELLING:
                    module.requires_grad_(True)
        for name, layer in targeted.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, self._adapted(name, layer))

    def quantise(self, model: nn.Module) -> None:
        """Puts the weights under a model's adapters into 4 bits, if that is asked for.

        Apart from `apply`, so that before it is done they can be identified; and without it, merged as they were.

        Raises:
            ValueError: bitsandbytes is not installed.
        """
        if not self.quantises:
            return
        nf4.check_installed()
        for _, layer in adapters(model):
            if isinstance(layer, LoRALinear):
                layer.quantise()

    def matches(self, model: nn.Module) -> dict[str, nn.Linear | nn.Embedding]:
        """The layers that the targets mean, by name."""
        return layers_for(model, self.targets, self.layers)

    def _adapted(self, name: str, layer: nn.Linear | nn.Embedding) -> Adapted:
        options = {"dropout": self.dropout, "b_lr_ratio": self.b_lr_ratio, "init": self.init}
        adapted = adapted_class(layer, self.variant)(layer, rank=self._rank(name), scale=self.scale(name), **options)
        if self.base_dtype is not None:
            adapted.hold_base_in(self.base_dtype)
        return adapted

    def _rank(self, name: str) -> int:
        return of_pattern(self.rank_pattern, name, self.rank)

    def _check_ranks(self, targeted: dict[str, nn.Linear | nn.Embedding]) -> None:
        """A weight has no more directions than its smaller side, of which these initialisations take r."""
        for name, layer in targeted.items():
            most = min(layer.weight.shape)
            if self.init != "kaiming" and self._rank(name) > most:
                raise ValueError(
                    f"lora.init={self.init} takes {self._rank(name)} directions of {name}, which has {most}: set "
                    f"lora.rank={most}, or lora.init=kaiming"
                )

    def _check_quantisable(
        self, model: nn.Module, targeted: dict[str, nn.Linear | nn.Embedding], adapt_only: bool
    ) -> None:
        if not adapt_only:
            raise ValueError(f"{IN_4_BITS} is for weights that were trained: name them by init_from=FOLDER")
        linears = [name for name, layer in targeted.items() if isinstance(layer, nn.Linear)]
        if not linears:
            raise ValueError(f"{IN_4_BITS} is for linear layers, and lora.targets has none: set lora.targets=all")
        for name in tied(model, linears):
            raise ValueError(
                f"{IN_4_BITS} cannot hold {name}'s weight, which another layer uses too: leave it out of lora.targets"
            )


def adapted_class(layer: nn.Module, variant: Variant) -> type:
    """The class for a layer of this kind with an adapter."""
    if isinstance(layer, nn.Embedding):
        return DoRAEmbedding if variant == "dora" else LoRAEmbedding
    return DoRALinear if variant == "dora" else LoRALinear
