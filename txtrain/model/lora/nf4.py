"""A frozen matrix in 4 bits: NF4 with double quantisation, by the kernels of bitsandbytes.

As in QLoRA (https://arxiv.org/abs/2305.14314), 64 neighbours of a matrix share a scale, which has 8 bits itself; 256
scales share one of 32, and all of them a mean. All of it is one tensor of bytes, so what moves, casts, broadcasts or
shards parameters treats it right without knowing it.
"""

import importlib.util
import logging
import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK, GROUP = 64, 256  # numbers to a scale, scales to a scale of theirs
FLOAT = 4  # bytes of a float32


def check_installed() -> None:
    """Refuses 4 bits where bitsandbytes is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "lora.base_dtype=nf4 needs bitsandbytes, which is not installed: type pip install 'txtrain[qlora]', or "
            "lora.base_dtype=bfloat16"
        )


def quantise(matrix: Tensor) -> Tensor:
    """A matrix (out, in) as bytes (n,), 4.127 bits for each of its numbers; the same bytes each time."""
    if matrix.is_meta:
        return matrix.new_empty(sum(_sizes(matrix.numel())), dtype=torch.uint8)
    narrow = matrix.detach().to(_known(matrix.dtype)).contiguous()
    codes, state = _library().quantize_4bit(narrow, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    floats = torch.cat([state.state2.absmax, state.offset[None]])
    return torch.cat([codes.flatten(), state.absmax, floats.view(torch.uint8)])


# An operation of its own, into which the compiler does not look.
@torch.library.custom_op("txtrain::dequantise_nf4", mutates_args=())
def dequantise(packed: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """The matrix (rows, columns) that the bytes mean."""
    library = _library()
    codes, scales, rest = packed.split(_sizes(rows * columns))
    floats = rest.clone().view(torch.float32)  # anew, since shards may begin at any byte
    state = library.QuantState(
        absmax=scales,
        shape=torch.Size((rows, columns)),
        dtype=_known(dtype),
        blocksize=BLOCK,
        quant_type="nf4",
        offset=floats[-1],
        state2=library.QuantState(
            absmax=floats[:-1], code=_code_of_scales(packed.device), blocksize=GROUP, dtype=torch.float32
        ),
    )
    return library.dequantize_4bit(codes[:, None], state).to(dtype)


@dequantise.register_fake
def _(packed: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty((rows, columns), dtype=dtype)


def product(x: Tensor, packed: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """W x + b, computed in the type of x, or in autocast's: x (..., in) → (..., rows)."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _Product.apply(x, packed, None if bias is None else bias.to(x.dtype), rows)


class _Product(torch.autograd.Function):
    """Makes W of its bytes forward and again backward, and keeps the bytes in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, bias: Tensor | None, rows: int) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.rows, ctx.columns = rows, x.shape[-1]
        return F.linear(x, dequantise(packed, rows, x.shape[-1], x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (packed,), (gradient,) = ctx.saved_tensors, gradients
        return gradient @ dequantise(packed, ctx.rows, ctx.columns, gradient.dtype), None, None, None


def _sizes(count: int) -> list[int]:
    """Bytes of the codes of so many numbers, of their scales, and of the scales' scales with the mean."""
    scales = math.ceil(count / BLOCK)
    return [math.ceil(count / 2), scales, FLOAT * (math.ceil(scales / GROUP) + 1)]


def _known(dtype: torch.dtype) -> torch.dtype:
    """The type nearest to this one that the library computes in."""
    return dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32


@cache
def _code_of_scales(device: torch.device) -> Tensor:
    """The 256 numbers that the 8 bits of a scale mean."""
    return _library().create_dynamic_map().to(device)


@cache
def _library() -> Any:
    # At import it tells that a package with faster kernels for some CPUs is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes.functional

    return bitsandbytes.functional
