"""What a forward pass keeps for the backward pass, counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
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
    _weights: list[set[int]] = field(default_factory=list, repr=False)

    def keep(self, tensor: Tensor) -> None:
        """Counts a tensor's storage, if it is new."""
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self._storages and not any(address in weights for weights in self._weights):
            self._storages.add(address)
            self.bytes_kept += storage.nbytes()

    def enter(self, *modules: nn.Module) -> None:
        """From here on does not count the parameters and buffers of modules themselves, their parts aside."""
        tensors = [tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values())]
        # A shard in FSDP has no storage of its own, and is never kept.
        plain = [tensor for tensor in tensors if tensor is not None and not is_traceable_wrapper_subclass(tensor)]
        self._weights.append({tensor.untyped_storage().data_ptr() for tensor in plain})

    def leave(self) -> None:
        """Forgets what the latest `enter` said."""
        self._weights.pop()

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
    measured.enter(*model.modules())
    for module in model.modules():
        # Sharded weights are gathered just before they are used, and their memory is then used for other things.
        handles.append(module.register_forward_pre_hook(lambda module, _: measured.enter(module)))
        handles.append(module.register_forward_hook(lambda *_: measured.leave(), always_call=True))

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
