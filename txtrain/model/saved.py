"""What a forward pass keeps for the backward pass, counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from txtrain.model.block import Block


@dataclass
class Measured:
    """What one micro-batch took. Blocks are numbered as in `blocks_of`.

    Attributes:
        forward_calls: how often each block was computed: once, or twice if it was computed again.
        bytes_kept: memory that is kept from the forward to the backward pass, on the device, weights not counted.
        bytes_moved: memory that is kept elsewhere, in the CPU's memory.
    """

    forward_calls: list[int]
    bytes_kept: int = 0
    bytes_moved: int = 0
    _storages: set[int] = field(default_factory=set, repr=False)

    def keep(self, tensor: Tensor) -> None:
        """Counts a tensor's storage, if it is new."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._storages:
            self._storages.add(storage.data_ptr())
            self.bytes_kept += storage.nbytes()

    def ignore(self, module: nn.Module) -> None:
        """Does not count a module's own parameters and buffers."""
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            self._storages.add(tensor.untyped_storage().data_ptr())

    def __str__(self) -> str:
        twice = sum(calls > 1 for calls in self.forward_calls)
        moved = f", {self.bytes_moved / 2**20:.1f} MiB moved to the CPU's memory" if self.bytes_moved else ""
        again = f"{twice} of {len(self.forward_calls)} blocks computed twice"
        return f"{again}, {self.bytes_kept / 2**20:.1f} MiB kept for the backward pass{moved}"


_measuring: list[Measured] = []


@contextmanager
def measure(model: nn.Module) -> Iterator[Measured]:
    """Counts while one micro-batch goes forward and backward through a model that is not compiled."""
    blocks = blocks_of(model)
    measured = Measured([0] * len(blocks))

    def count(number: int) -> Any:
        def hook(*_: Any) -> None:
            measured.forward_calls[number] += 1

        return hook

    # A block's own hooks run once even if it is computed twice; those of its parts do not.
    handles = [block.norm.register_forward_pre_hook(count(number)) for number, block in enumerate(blocks)]
    for module in model.modules():
        measured.ignore(module)
        # Sharded weights are gathered just before they are used.
        handles.append(module.register_forward_pre_hook(lambda module, _: measured.ignore(module)))

    def pack(tensor: Tensor) -> Tensor:
        measured.keep(tensor)
        return tensor

    _measuring.append(measured)
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            yield measured
    finally:
        _measuring.remove(measured)
        for handle in handles:
            handle.remove()


def report_kept(outputs: Any) -> None:
    """Tells whoever measures of tensors that are kept without a hook of autograd."""
    for measured in _measuring:
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                measured.keep(leaf)


def report_moved(copy: Tensor) -> None:
    """Tells whoever measures of a copy that is kept in the CPU's memory."""
    for measured in _measuring:
        measured.bytes_moved += copy.nbytes


def blocks_of(model: nn.Module) -> list[Block]:
    """The layers of all stacks of a model, in order."""
    return [module for module in model.modules() if isinstance(module, Block)]
