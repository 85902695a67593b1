"""Fully sharded data parallelism: every device has a part of each weight."""

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from txtrain.model.block import Block
from txtrain.strategy.portable import Portable


class FSDP(Portable, ModelParallelStrategy):
    """Weights, gradients and optimizer state lie in shards; a block's weights are gathered when it runs
    (https://arxiv.org/abs/2304.11277, torch's FSDP2).

    With trainer.precision=bf16-mixed weights are kept in float32 and gathered in bfloat16. Gradients are always added
    up over devices in float32.

    Args:
        reshard_after_forward: whether a block's gathered weights are dropped until backward, which gathers them again.
    """

    option = "fsdp"
    cuts_weights = True

    def __init__(self, *, reshard_after_forward: bool = True) -> None:
        super().__init__(tensor_parallel_size=1)
        self.reshard_after_forward = reshard_after_forward

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, model: nn.Module) -> None:
        """Shards each block, then what is left. Every rank must have built the same weights."""
        self.precision_plugin.convert_module(model)
        gathered = torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None
        options = {
            "mesh": self.device_mesh["data_parallel"],
            "reshard_after_forward": self.reshard_after_forward,
            "mp_policy": MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32),
        }
        for module in model.modules():
            if isinstance(module, Block):
                fully_shard(module, **options)
        fully_shard(model, **options)
        for name in ("encode", "decode"):  # ways into an encoder-decoder beside its forward pass
            if hasattr(model, name):
                register_fsdp_forward_method(model, name)


def shard(strategy: Strategy, model: nn.Module) -> None:
    """Shards a model if the strategy is one that does so before the optimizer is made."""
    if isinstance(strategy, FSDP):
        strategy.shard(model)
