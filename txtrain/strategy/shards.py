"""Whole tensors out of ZeRO's shards, and back into them.

ZeRO keeps a float32 copy of each trainable weight, and the optimizer's moments of it, in flat pieces of several
weights. DeepSpeed's accessors find a weight's part in them (https://deepspeed.readthedocs.io/en/latest/zero3.html#debugging).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cut(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Leaves of each weight of a model this process's piece, as stage 3 does, one after the other.

    DeepSpeed's engine would first put the whole model on every device.

    Args:
        model: the same on all processes.
        config: DeepSpeed's.
    """
    from deepspeed.runtime.zero import Init

    zero = Init(module=nn.Module(), config_dict_or_path=dict(config))
    for parameter in model.parameters():
        if zero.dtype != torch.float32 and parameter.is_floating_point():
            parameter.data = parameter.data.to(zero.dtype)
        zero._convert_to_zero_parameters([parameter])


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of a weight, of which stage 3 leaves an empty tensor."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def whole_weight(parameter: nn.Parameter) -> Tensor:
    """The weight in float32 as the optimizer has it; a frozen one, which it has not, as the model has it."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if parameter.requires_grad:
        return safe_get_full_fp32_param(parameter)
    if not hasattr(parameter, "ds_id"):
        return parameter.detach()
    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def set_weight(parameter: nn.Parameter, value: Tensor) -> None:
    """Puts a whole weight into the model and, if it trains, into the optimizer's copy."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    with torch.no_grad():
        if not hasattr(parameter, "ds_id"):
            parameter.copy_(value)
            if parameter.requires_grad:
                safe_set_full_fp32_param(parameter, value)
            return
        with GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)
        if parameter.requires_grad:
            safe_set_local_fp32_param(parameter, _piece(parameter, value))


def whole_moments(zero: Any, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """A weight's moments, and the optimizer's count of steps."""
    from deepspeed.utils import safe_get_full_optimizer_state

    _link(zero)
    flat = flat_pieces(zero)[0]
    for key, value in sorted(zero.optimizer.state.get(flat, {}).items()):
        if isinstance(value, Tensor) and value.dim():
            yield key, safe_get_full_optimizer_state(parameter, key)
        elif value is not None:
            yield key, torch.as_tensor(value, dtype=torch.float32)


def set_moments(zero: Any, moments: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
    """Makes the state of an optimizer that has made no step yet, and fills it."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    inner = zero.optimizer
    first = next(iter(moments.values()), {})
    for flat in flat_pieces(zero):
        for key, value in first.items():
            if value.dim():
                inner.state[flat].setdefault(key, torch.zeros_like(flat))
            else:
                inner.state[flat][key] = int(value) if isinstance(inner, DeepSpeedCPUAdam) else value.clone()
    _link(zero)
    for parameter, values in moments.items():
        for key, value in values.items():
            if value.dim() and hasattr(parameter, "ds_id"):
                safe_set_local_optimizer_state(parameter, _piece(parameter, value), key)
            elif value.dim():
                safe_set_full_optimizer_state(parameter, value, key)


def flat_pieces(zero: Any) -> list[Tensor]:
    """What this rank's optimizer works on: at stage 3 by one name, at stages 1 and 2 by another."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return zero.fp32_partitioned_groups_flat
    return zero.single_partition_of_fp32_groups


def _link(zero: Any) -> None:
    """At stages 1 and 2 each weight has views of its moments, made anew here since the moments may be new."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _piece(parameter: Any, value: Tensor) -> Tensor:
    """This rank's piece of a whole tensor at stage 3; the last one is filled up with zeros."""
    from deepspeed import comm

    size, ranks = parameter.ds_tensor.numel(), comm.get_world_size(parameter.ds_process_group)
    flat = F.pad(value.flatten(), (0, size * ranks - value.numel()))
    return flat.narrow(0, size * comm.get_rank(parameter.ds_process_group), size)
