"""Muon for the matrices of the blocks, AdamW for the rest, as one optimizer."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from txtrain.model.block import Block
from txtrain.optim.groups import check_settings, decay_groups, fused, trainable, with_rates


class Muon(Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon/) makes the average gradient of a matrix orthogonal, so that all
    directions move alike. AdamW trains what is no matrix within a block: embeddings, head, norms, biases.

    torch's two optimizers work on this one's groups and state, so the schedule scales both and one state dict has both.

    Args:
        model: what to train.
        lr: learning rate of the matrices.
        momentum: how slowly the average of a matrix's gradient changes.
        weight_decay: share of a matrix, times the learning rate, taken off at each step.
        adjust_lr_fn: how the size of a matrix scales its steps: to be as large as AdamW's
            (https://arxiv.org/abs/2502.16982), or as in the original.
        adamw_lr: learning rate of the rest. Default: `lr`, right with match_rms_adamw.
        betas, eps: of AdamW.
    """

    needs_whole_matrices: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        adamw_lr: float | None = None,
        betas: list[float] | tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        rest_lr = lr if adamw_lr is None else adamw_lr
        pair = check_settings(
            lr=lr, momentum=momentum, weight_decay=weight_decay, adamw_lr=rest_lr, betas=betas, eps=eps
        )
        parameters = trainable(model)
        in_blocks = {p for module in model.modules() if isinstance(module, Block) for p in module.parameters()}
        matrices = [p for p in parameters if p.ndim == 2 and p in in_blocks]
        rest = [p for p in parameters if p.ndim != 2 or p not in in_blocks]
        if not matrices:
            raise ValueError("optimizer=muon finds no matrix to train in any block: use optimizer=adamw")
        rated = with_rates(model, [{"params": matrices}], lr)
        self._parts: list[Optimizer] = [
            torch.optim.Muon(rated, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn=adjust_lr_fn)
        ]
        if rest:
            groups = with_rates(model, decay_groups(model, rest, weight_decay), rest_lr)
            self._parts.append(torch.optim.AdamW(groups, lr=rest_lr, betas=pair, eps=eps, fused=fused(rest)))
        super().__init__([group for part in self._parts for group in part.param_groups], defaults={})
        self._share()

    def _share(self) -> None:
        """Has both optimizers work on this one's groups and state."""
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter in (parameter for group in self._parts[0].param_groups for parameter in group["params"]):
            # FSDP's shards: torch's Muon would round differently on them, so each rank works on the whole, as one does.
            if isinstance(parameter.grad, DTensor):
                whole = [Replicate()] * parameter.device_mesh.ndim
                parameter.grad = parameter.grad.redistribute(placements=whole)
        for part in self._parts:
            part.step()
        return loss
