"""How many devices share a run: Lightning strategies that train alike on CPUs (gloo) and GPUs (NCCL)."""

from txtrain.strategy.choose import auto, check_optimizer, choose_strategy, count_devices
from txtrain.strategy.ddp import DDP
from txtrain.strategy.fsdp import FSDP, shard
from txtrain.strategy.gradients import (
    clip_gradients,
    drop_step,
    gradients_overflow,
    not_finite,
    step_was_left_out,
    weight_not_finite,
)
from txtrain.strategy.memory import made_once
from txtrain.strategy.one import OneDevice
from txtrain.strategy.portable import Portable
from txtrain.strategy.processes import ending_processes, is_lost
from txtrain.strategy.zero import DeepSpeed

__all__ = [
    "DDP",
    "FSDP",
    "DeepSpeed",
    "OneDevice",
    "Portable",
    "auto",
    "check_optimizer",
    "choose_strategy",
    "clip_gradients",
    "count_devices",
    "drop_step",
    "ending_processes",
    "gradients_overflow",
    "is_lost",
    "made_once",
    "not_finite",
    "shard",
    "step_was_left_out",
    "weight_not_finite",
]
