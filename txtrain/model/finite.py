"""Tensors that hold NaN or infinity, found in one pass that copies nothing."""

from collections.abc import Iterable

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; integers, such as weights in 4 bits, never have."""
    return first_not_finite([("", tensor)]) is None


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with NaN or infinity, None if there is none; tensors without memory pass.

    A sum with NaN or infinity in it is never finite, so sums clear nearly all tensors at the speed of memory, and the
    device is waited for once. The few whose sum overflows are looked at number by number.
    """
    held = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point() and not tensor.is_meta]
    sums = [_sum(tensor) for _, tensor in held]
    if not sums or all(_all_finite(group) for group in _by_device(sums)):
        return None
    suspects = (name for (name, tensor), total in zip(held, sums, strict=True) if _bad(tensor, total))
    return next(suspects, None)


def _sum(tensor: Tensor) -> Tensor:
    return tensor.sum().float()  # of its own type, since one of another would first copy the tensor


def _by_device(sums: list[Tensor]) -> Iterable[list[Tensor]]:
    groups: dict[torch.device, list[Tensor]] = {}
    for total in sums:
        groups.setdefault(total.device, []).append(total)
    return groups.values()


def _all_finite(sums: list[Tensor]) -> bool:
    return bool(torch.stack(sums).isfinite().all())


def _bad(tensor: Tensor, total: Tensor) -> bool:
    return not (total.isfinite() or tensor.isfinite().all())
