"""trainer.precision=bf16-true makes bfloat16 the default type: tables are float32 all the same."""

import pytest
import torch

from txtrain.model import Shape, Stack
from txtrain.model.encoding import Rope, Sinusoidal, XPos

STACK = Stack(shape=Shape(dim=64, num_layers=1, num_heads=2), causal=True, max_len=64)
KINDS = {
    "plain": lambda: Rope(stack=STACK),
    "linear": lambda: Rope(stack=STACK, scaling="linear", factor=4.0),
    "dynamic": lambda: Rope(stack=STACK, scaling="dynamic", factor=4.0, original_len=64),
    "yarn": lambda: Rope(stack=STACK, scaling="yarn", factor=4.0, original_len=64),
    "llama3": lambda: Rope(stack=STACK, scaling="llama3", factor=4.0, original_len=64),
    "xpos": lambda: XPos(stack=STACK),
}


@pytest.fixture
def bfloat16_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def tables(kind, positions):
    return torch.utils._pytree.tree_leaves(KINDS[kind]().tables(positions))


@pytest.mark.parametrize("kind", KINDS)
def test_tables_do_not_depend_on_the_default_type(kind, request):
    positions = torch.arange(4096)[None]
    expected = tables(kind, positions)
    request.getfixturevalue("bfloat16_default")
    for found, table in zip(tables(kind, positions), expected, strict=True):
        assert torch.equal(found, table)


def test_waves_do_not_depend_on_the_default_type(request):
    x, positions = torch.zeros(1, 4096, 64), torch.arange(4096)[None]
    expected = Sinusoidal(stack=STACK).embed(x, positions)
    request.getfixturevalue("bfloat16_default")
    assert torch.equal(Sinusoidal(stack=STACK).embed(x, positions), expected)
