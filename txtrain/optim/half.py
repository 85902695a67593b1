"""Training of weights in 16 bits: any optimizer steps in float32, and new weights are rounded at random.

Near 1 neighbouring numbers in bfloat16 are 0.004 to 0.008 apart, and a step of AdamW is the learning rate, such as
0.001: rounded to the nearest number, most weights would never move. Rounded up with the probability that keeps the
mean, they move as far as they should on average (https://arxiv.org/abs/2010.06192). Small weights, of which there are
few, have float32 masters instead, and the optimizer's moments are in float32.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

HALVES = {torch.bfloat16: 7, torch.float16: 10}  # types of 16 bits, and the bits of their mantissa
SMALL = 2**14  # elements; smaller matrices have masters, as all norms, biases and scalars do
BUCKET = 2**24  # elements that are in float32 at once, in a step
MANTISSA = 23  # bits of a float32


def in_float32(optimizer: Optimizer, model: nn.Module, *, seed: int, step: Callable[[], int]) -> Optimizer:
    """The optimizer, with steps in float32 if any weight that it trains has 16 bits.

    Args:
        optimizer: any that looks at each parameter by itself.
        model: whose parameters it trains.
        seed: of the random bits, with the step, the parameter's name and the element.
        step: the number of steps before this one.
    """
    half = any(parameter.dtype in HALVES for group in optimizer.param_groups for parameter in group["params"])
    return HalfOptimizer(optimizer, model, seed=seed, step=step) if half else optimizer


def is_small(parameter: nn.Parameter) -> bool:
    """Whether a weight in 16 bits has a master in float32."""
    return parameter.ndim < 2 or parameter.numel() < SMALL


class HalfOptimizer(Optimizer):
    """Steps of another optimizer in float32, for weights in 16 bits.

    In a step each bucket of weights has float32 copies, with which the optimizer works as if they were the weights; its
    moments follow their type. Groups and state are those of the other optimizer.

    Attributes:
        optimizer: the other one.
        masters: float32 copies of small weights, which stay from step to step.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module, *, seed: int, step: Callable[[], int]) -> None:
        self.optimizer, self._seed, self._step = optimizer, seed, step
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.masters: dict[nn.Parameter, Tensor] = {
            parameter: parameter.detach().float()
            for parameter in trained
            if parameter.dtype in HALVES and is_small(parameter)
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["optimizer"], name)

    def __repr__(self) -> str:
        return repr(self.optimizer)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for bucket in self._buckets():
            copies = {parameter: self._copy(parameter) for parameter in bucket}
            with self._replaced(copies):
                self.optimizer.step()
            for parameter, copy in copies.items():
                if copy is not parameter:
                    self._put_back(parameter, copy)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores moments in float32, whatever their type was."""
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        with self._replaced({parameter: _like(parameter) for parameter in trained}):
            self.optimizer.load_state_dict(state_dict)

    def describe(self) -> str:
        """The cost in memory, in words."""
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        kind = str(next(parameter.dtype for parameter in trained if parameter.dtype in HALVES)).removeprefix("torch.")
        size = sum(master.nbytes for master in self.masters.values())
        return (
            f"{kind} weights rounded at random, moments in float32, "
            f"float32 masters of {len(self.masters)} small weights ({size / 2**10:.0f} KiB)"
        )

    def _buckets(self) -> Iterator[list[nn.Parameter]]:
        """All parameters that have a gradient, as many at once as have room."""
        bucket, elements = list[nn.Parameter](), 0
        for parameter in (parameter for group in self.optimizer.param_groups for parameter in group["params"]):
            if parameter.grad is None:
                continue
            size = _held(parameter).numel()
            if bucket and elements + size > BUCKET:
                yield bucket
                bucket, elements = [], 0
            bucket.append(parameter)
            elements += size
        if bucket:
            yield bucket

    def _copy(self, parameter: nn.Parameter) -> Tensor:
        """The weight in float32, with its gradient."""
        if parameter.dtype not in HALVES:
            return parameter
        copy = self.masters.get(parameter)
        if copy is None:
            copy = parameter.detach().to(torch.float32, memory_format=torch.contiguous_format)
        assert parameter.grad is not None
        copy.grad = parameter.grad.float()
        return copy

    def _put_back(self, parameter: nn.Parameter, copy: Tensor) -> None:
        copy.grad = None
        if parameter not in self.masters:
            bits = f"{self._seed} {self._step()} {self._names[parameter]}"
            round_at_random(_held(copy), parameter.dtype, seed=bits, first=_first_element(parameter))
        parameter.copy_(copy)

    @contextmanager
    def _replaced(self, copies: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
        """Around what the other optimizer does: it has these copies instead of their parameters, and no others."""
        inner = self.optimizer
        whole = [group["params"] for group in inner.param_groups]
        for group in inner.param_groups:
            group["params"] = [copies[parameter] for parameter in group["params"] if parameter in copies]
        _rename(inner.state, copies)
        try:
            yield
        finally:
            _rename(inner.state, {copy: parameter for parameter, copy in copies.items()})
            for group, parameters in zip(inner.param_groups, whole, strict=True):
                group["params"] = parameters


def round_at_random(values: Tensor, dtype: torch.dtype, *, seed: str, first: int = 0) -> None:
    """Rounds float32 values, in place, to numbers that a type of 16 bits has, so that their expectation is the value.

    Args:
        values: contiguous.
        dtype: bfloat16 or float16; what is below its normal numbers is left to the nearest one.
        seed: of the random bits.
        first: number of the first value in the whole tensor, of which these may be a shard.
    """
    below = (1 << (MANTISSA - HALVES[dtype])) - 1
    flat = values.view(-1)
    chunk = 2**16 if values.device.type == "cpu" else BUCKET  # a CPU's cache holds a small one
    for start in range(0, flat.numel(), chunk):
        part = flat[start : start + chunk]
        bits = random_bits(part.numel(), seed=seed, first=first + start, device=part.device).bitwise_and_(below)
        bits.add_(part.view(torch.int32)).bitwise_and_(~below)
        torch.where(part.isfinite(), bits.view(torch.float32), part, out=part)  # infinite and NaN stay what they are


def random_bits(count: int, *, seed: str, first: int, device: torch.device) -> Tensor:
    """32 random bits for each element from number `first` on, a function of the seed and the element alone.

    A counter through the mixing function lowbias32 (https://github.com/skeeto/hash-prospector).
    """
    begin, key = struct.unpack("<II", blake2b(seed.encode(), digest_size=8).digest())
    bits = torch.arange(count, dtype=torch.int32, device=device).add_(_signed(begin + first))
    _fold(bits, 16).mul_(_signed(0x7FEB352D)).bitwise_xor_(_signed(key))
    _fold(bits, 15).mul_(_signed(0x846CA68B))
    return _fold(bits, 16)


def _fold(bits: Tensor, shift: int) -> Tensor:
    """In place, x ^ (x >> shift), where zeros are shifted in; >> alone repeats the sign."""
    return bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1))


def _signed(number: int) -> int:
    """The int32 of the lowest 32 bits."""
    return (number + 2**31) % 2**32 - 2**31


def _rename(state: dict[Any, Any], names: Mapping[Any, Any]) -> None:
    for before, now in names.items():
        if before in state:
            state[now] = state.pop(before)


def _like(parameter: nn.Parameter) -> Tensor:
    """A tensor without elements, in the type of a parameter's moments and where they are."""
    dtype = torch.float32 if parameter.dtype in HALVES else parameter.dtype
    return torch.empty(0, dtype=dtype, device=parameter.device)


def _held(tensor: Tensor) -> Tensor:
    """What this process holds: all, or a shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _first_element(parameter: Tensor) -> int:
    """Number of the first element that this process holds in the whole weight; shards are cut along the first axis."""
    if not isinstance(parameter, DTensor):
        return 0
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return offset[0] * (parameter.numel() // parameter.shape[0])
