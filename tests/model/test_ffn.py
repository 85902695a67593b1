"""Feed-forward layers: against formulas in float64, their sizes, and every option of the config."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from txtrain.model import Shape, Stack
from txtrain.model.ffn import FeedForward, GatedFeedForward

CONFIGS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "conf/ffn").glob("*.yaml"))}


def new_ffn(option: str, ffn_dim: int | None = None, **overrides: object) -> nn.Module:
    stack = Stack(shape=Shape(dim=24, num_layers=1, num_heads=2, ffn_dim=ffn_dim), causal=True, max_len=8)
    return instantiate(OmegaConf.merge(OmegaConf.load(CONFIGS[option]), overrides), _convert_="all")(stack=stack)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: Tensor) -> Tensor:
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


FORMULAS = {
    "relu": lambda x: x * (x > 0),
    "gelu": gelu,
    "swiglu": lambda x: x / (1 + torch.exp(-x)),
    "geglu": gelu,
}


def test_every_option_has_a_formula() -> None:
    assert set(CONFIGS) == set(FORMULAS)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("option", FORMULAS)
def test_formula(option: str, bias: bool) -> None:
    torch.manual_seed(0)
    check(new_ffn(option, bias=bias).double(), FORMULAS[option])


@pytest.mark.parametrize("option", ["gelu", "geglu"])
def test_gelu_tanh(option: str) -> None:
    check(new_ffn(option, activation="gelu_tanh").double(), gelu_tanh)


def check(ffn: nn.Module, activation: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 5, 24, dtype=torch.float64)

    def linear(layer: nn.Linear, y: Tensor) -> Tensor:
        out = torch.einsum("oi,bti->bto", layer.weight, y)
        return out if layer.bias is None else out + layer.bias

    if isinstance(ffn, GatedFeedForward):
        inner = activation(linear(ffn.gate_proj, x)) * linear(ffn.up_proj, x)
    else:
        inner = activation(linear(ffn.up_proj, x))
    torch.testing.assert_close(ffn(x), linear(ffn.down_proj, inner), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dim, plain, gated", [(24, 96, 64), (128, 512, 344), (768, 3072, 2048), (4096, 16384, 10928)])
def test_gate_costs_no_parameters(dim: int, plain: int, gated: int) -> None:
    """Two thirds of the width, in steps of 8, make up for the third matrix."""
    stack = Stack(shape=Shape(dim=dim, num_layers=1, num_heads=2), causal=True, max_len=8)
    with torch.device("meta"):
        layers = FeedForward(stack=stack), GatedFeedForward(stack=stack)
    assert [layer.up_proj.out_features for layer in layers] == [plain, gated]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert sizes[0] <= sizes[1] <= sizes[0] + 3 * 8 * dim


@pytest.mark.parametrize("option", FORMULAS)
def test_width_may_be_given(option: str) -> None:
    assert new_ffn(option, ffn_dim=40).up_proj.out_features == 40
