"""Gradient checkpointing: which activations of a model's blocks are kept for the backward pass, and where.

A policy replaces `forward` of single `Block` objects by a bound function that calls the class's own. So names in state
dicts stay, copies of a model work, and the hooks by which ZeRO-3 and FSDP gather a block's weights stay outside: when a
block is computed again, the weights are there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext, checkpoint
from torch.utils.checkpoint import create_selective_checkpoint_contexts as selective_contexts

from txtrain.model import saved
from txtrain.model.block import Block


class CheckpointingPolicy(ABC):
    """What the blocks of a model keep of their forward pass. Applied after LoRA, before compilation and sharding."""

    def apply(self, model: nn.Module) -> None:
        """Replaces the forward pass of blocks. All get the same function, so that they share one compiled graph."""
        forward = self.forward()
        for number, block in enumerate(saved.blocks_of(model)):
            if self.covers(number):
                block.forward = MethodType(forward, block)  # type: ignore[method-assign]

    def covers(self, number: int) -> bool:
        """Whether the policy is for the block of this number."""
        return True

    @abstractmethod
    def forward(self) -> Callable[..., Any]:
        """What takes the place of `Block.forward`."""


class KeepAll(CheckpointingPolicy):
    """Every block keeps everything: the fastest, while it fits into memory."""

    def apply(self, model: nn.Module) -> None:
        """Leaves the model as it is."""

    def forward(self) -> Callable[..., Any]:
        return Block.forward


class Recompute(CheckpointingPolicy):
    """Every block keeps its input and is computed again in the backward pass (https://arxiv.org/abs/1604.06174)."""

    settings: Mapping[str, Any] = MappingProxyType({})

    def forward(self) -> Callable[..., Any]:
        settings = self.settings

        def recomputed(block: Block, *args: Any) -> Any:
            # A stream may be a tuple, whose tensors are inputs like any other.
            leaves, tree = tree_flatten(args)

            def run(*leaves: Any) -> Any:
                return type(block).forward(block, *tree_unflatten(leaves, tree))

            # With the state of the random generator kept, dropout draws the same numbers again.
            return checkpoint(run, *leaves, use_reentrant=False, preserve_rng_state=True, **settings)

        return recomputed


class RecomputeEvery(Recompute):
    """Every n-th block is computed again, the others keep everything.

    Args:
        n: 2 recomputes half of the blocks, 3 a third; 1 all.
    """

    def __init__(self, *, n: int = 2) -> None:
        if n < 1:
            raise ValueError(f"checkpointing.n is {n}: give at least 1, such as checkpointing.n=2")
        self.n = n

    def covers(self, number: int) -> bool:
        return number % self.n == 0


GROUPS = {
    "products": ["mm", "addmm"],
    "attention": [
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    ],
}


class Selective(Recompute):
    """Every block keeps its input and the results of chosen operations; all others are computed again.

    Products of matrices and attention are most of the time, and norms, activations, rotations and dropout much of the
    memory (https://arxiv.org/abs/2205.05198).

    Args:
        save: whose results to keep: `products`, `attention`, or names of ATen operations, such as `mm`.
    """

    def __init__(self, *, save: list[str]) -> None:
        names = [name for group in save for name in GROUPS.get(group, [group])]
        for name in names:
            if not hasattr(torch.ops.aten, name):
                raise ValueError(
                    f"checkpointing.save has {name}, which is no operation of torch.ops.aten: "
                    f"give names of those or {', '.join(GROUPS)}, such as checkpointing.save=[attention]"
                )
        operations = {getattr(torch.ops.aten, name) for name in names}
        if "attention" in save:
            operations.add(torch.ops.higher_order.flex_attention)

        def decide(context: SelectiveCheckpointContext, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
            if getattr(operation, "overloadpacket", operation) not in operations or draws(operation, args, kwargs):
                return CheckpointPolicy.PREFER_RECOMPUTE
            if not context.is_recompute and not torch.compiler.is_compiling():
                saved.report_kept(context.op_output)
            return CheckpointPolicy.MUST_SAVE

        self.settings = {"context_fn": partial(selective_contexts, decide)}


def draws(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation draws random numbers.

    Such are computed again, even if they were to be kept: skipped, they would leave the generator behind, and the next
    dropout of the block would draw other numbers than in the forward pass.
    """
    if torch.Tag.nondeterministic_seeded not in getattr(operation, "tags", ()):
        return False
    arguments = operation._schema.arguments
    values = {argument.name: argument.default_value for argument in arguments}
    values |= {argument.name: value for argument, value in zip(arguments, args, strict=False)} | kwargs
    return values.get("dropout_p", 1.0) > 0.0


class Offload(CheckpointingPolicy):
    """Every block moves what it keeps into the CPU's memory (pinned, beside a GPU) and back in the backward pass.

    Weights stay where they are. On a CPU the copies are made all the same, and save nothing.
    """

    def forward(self) -> Callable[..., Any]:
        # Hooks act on what a compiled block keeps, and are themselves not compiled.
        @torch.compiler.disable(recursive=False)
        def offloaded(block: Block, *args: Any) -> Any:
            mover = Mover(list(block.parameters()))
            with saved_tensors_hooks(mover.pack, Mover.unpack):
                return type(block).forward(block, *args)

        return offloaded


# How to get a storage, and the size, strides and offset of the view into it.
Packed = tuple[Callable[[], Tensor], tuple[int, ...], tuple[int, ...], int]


class Mover:
    """Moves the tensors that one forward pass of a block keeps.

    It moves whole storages, of which tensors are views: each once, however many operations keep it.

    Args:
        parameters: of the block, which are not moved.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        # The originals are held too, lest another tensor comes to the same address while the block runs.
        self.moved: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def pack(self, tensor: Tensor) -> Packed:
        """What is kept in place of a tensor."""
        view = tuple(tensor.shape), tensor.stride()
        # The parameter itself, not its memory: under ZeRO-3 and FSDP that is freed now and gathered again later.
        for weight in self.parameters:
            ahead = tensor.data_ptr() - weight.data_ptr()
            if 0 <= ahead < weight.nbytes:
                return weight.detach, *view, int(weight.storage_offset()) + ahead // weight.itemsize
        key = tensor.untyped_storage().data_ptr(), tensor.dtype
        if key not in self.moved:
            whole = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)
            copy = torch.empty(whole.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copy.copy_(whole, non_blocking=True)
            self.moved[key] = tensor, copy
            saved.report_moved(copy)
        return partial(self.moved[key][1].to, tensor.device, non_blocking=True), *view, int(tensor.storage_offset())

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """The tensor, as it was."""
        fetch, size, strides, offset = packed
        return fetch().as_strided(size, strides, offset)
