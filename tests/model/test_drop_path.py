"""Sublayers that are left out for some samples."""

from functools import partial

import pytest
import torch

from txtrain.model import Encoder, Shape
from txtrain.model.attention import Attention
from txtrain.model.block import DropPath
from txtrain.model.checkpointing import Recompute
from txtrain.model.embed import Embedding
from txtrain.model.encoding import Rope
from txtrain.model.ffn import FeedForward
from txtrain.model.norm import PreNorm

TOKENS = torch.randint(9, (6, 5), generator=torch.Generator().manual_seed(0))


def new_model(rate, layers=5):
    torch.manual_seed(0)
    shape = Shape(dim=16, num_layers=layers, num_heads=2, drop_path=rate)
    axes = {"encoding": Rope, "norm": PreNorm, "attention": Attention, "ffn": FeedForward}
    return Encoder(vocab_size=9, max_len=5, shape=shape, embedding=partial(Embedding), **axes)


def test_a_branch_is_left_out_for_whole_samples_and_kept_in_the_mean():
    torch.manual_seed(0)
    x = torch.randn(4000, 3, 2)
    dropped = DropPath(0.3)(x)
    gone = (dropped == 0).flatten(1).all(1)
    torch.testing.assert_close(dropped[~gone], x[~gone] / 0.7)
    assert gone.float().mean() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(DropPath(0.3).eval()(x), x)
    assert torch.equal(DropPath(0.0)(x), x)


def test_rates_grow_evenly_with_depth():
    assert [block.drop_path.rate for block in new_model(0.4).stack.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [block.drop_path.rate for block in new_model(0.4, layers=1).stack.blocks] == [0]


def test_what_is_computed_again_leaves_out_the_same():
    gradients = []
    for policy in (None, Recompute()):
        model = new_model(0.5).train()
        if policy:
            policy.apply(model)
        torch.manual_seed(1)
        model(TOKENS).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_share_of_one_is_refused():
    with pytest.raises(ValueError, match=r"model\.drop_path is 1\.0: give a probability below 1"):
        Shape(dim=16, num_layers=1, num_heads=2, drop_path=1.0)
