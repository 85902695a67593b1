"""Patches of images, positions on a grid, and heads that pool."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from txtrain.model import EncoderWithHead, Shape
from txtrain.model.attention import Attention
from txtrain.model.embed import Embedding
from txtrain.model.encoding.fire import Fire
from txtrain.model.encoding.learned import Learned
from txtrain.model.encoding.none import NoEncoding
from txtrain.model.ffn import FeedForward
from txtrain.model.grid import Grid
from txtrain.model.head import Head
from txtrain.model.norm.pre import PreNorm
from txtrain.model.patches import Patches
from txtrain.model.pooling import DistilledHead, PoolingHead, TokenMeanHead
from txtrain.model.shape import Stack

SHAPE = Shape(dim=16, num_layers=1, num_heads=2)
PATCHES = partial(Patches, image_size=[8, 12], patch_size=[2, 3])


def new_model(embedding=PATCHES, head=PoolingHead, encoding=Learned, **sizes):
    torch.manual_seed(0)
    axes = {"norm": PreNorm, "attention": Attention, "ffn": FeedForward}
    sizes = sizes or {"num_labels": 5}
    return EncoderWithHead(shape=SHAPE, embedding=embedding, head=head, encoding=encoding, **axes, **sizes).eval()


@pytest.mark.parametrize("size", [(8, 12), (9, 14), (16, 24)], ids=str)
def test_patches_are_a_convolution(size):
    patches = Patches(dim=16, image_size=[8, 12], patch_size=[2, 3], channels=2, class_token=False).double()
    patches.initialise()
    images = torch.randn(3, 2, *size, dtype=torch.float64)
    kernel = patches.projection.weight.view(16, 2, 2, 3)
    expected = F.conv2d(images, kernel, patches.projection.bias, stride=(2, 3)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches(images, lambda x: x), expected)
    assert patches.positions(images).shape == (1, expected.size(1), 2)


def test_positions_are_those_of_the_grid_that_was_trained():
    grid = Grid(size=(2, 3), prefix=2)
    assert grid.length == 8
    whole = [[-1, -1], [-2, -2], [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert grid.positions((2, 3), torch.device("cpu")).tolist() == [whole]
    # Twice as fine: the middles of the quarters of an old patch.
    finer = grid.positions((4, 6), torch.device("cpu"))[0, 2:].view(4, 6, 2)
    assert finer[:, 0, 0].tolist() == [-0.25, 0.25, 0.75, 1.25]
    assert finer[0, :, 1].tolist() == [-0.25, 0.25, 0.75, 1.25, 1.75, 2.25]


@pytest.mark.parametrize("size", [(5, 3), (9, 4), (2, 7), (3, 5), (1, 1), (40, 40)], ids=str)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_learned_positions_are_interpolated_as_torch_does_images(size, prefix):
    grid = Grid(size=(5, 3), prefix=prefix)
    encoding = Learned(stack=Stack(shape=SHAPE, causal=False, max_len=grid.length, grid=grid))
    positions = grid.positions(size, torch.device("cpu"))
    got = encoding.embed(torch.zeros(1, positions.size(1), 16), positions)[0]
    table = encoding.table.weight
    old = table[prefix:].view(1, 5, 3, 16).permute(0, 3, 1, 2)
    new = F.interpolate(old, size=size, mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(got, torch.cat((table[:prefix], new)), rtol=1e-5, atol=1e-6)


def test_images_of_another_size_go_through_and_train_the_table():
    model = new_model()
    model(torch.randn(2, 3, 12, 9)).sum().backward()
    gradient = model.stack.encoding.table.weight.grad
    assert gradient.isfinite().all()
    assert (gradient.abs().sum(1) > 0).all()  # coarser or finer, all rows have a share


def test_the_mean_is_of_real_tokens_and_of_no_class_token():
    embedding = Patches(dim=16, image_size=8, patch_size=2)
    head = PoolingHead(embedding=embedding, dim=16, num_labels=3, pool="mean")
    x = torch.randn(2, 17, 16)
    real = torch.arange(17)[None] < torch.tensor([17, 9])[:, None]
    expected = torch.stack((x[0, 1:].mean(0), x[1, 1:9].mean(0)))
    torch.testing.assert_close(head(x, real), head.linear(expected))
    torch.testing.assert_close(head(x), head.linear(x[:, 1:].mean(1)))
    disturbed = torch.where(real[..., None], x, math.inf)
    disturbed[:, 0] = 7.0
    assert torch.equal(head(torch.where(disturbed == math.inf, 1e6, disturbed), real), head(x, real))


@pytest.mark.parametrize("tokens", [1, 2])
def test_the_mean_of_the_tokens_before_a_grid_is_normalised_and_scored(tokens):
    embedding = Patches(dim=16, image_size=8, patch_size=2, distillation_token=tokens == 2)
    head = TokenMeanHead(embedding=embedding, dim=16, num_labels=3, norm_eps=0.1)
    x = torch.randn(2, 16 + tokens, 16)
    mean = x[:, 0] if tokens == 1 else (x[:, 0] + x[:, 1]) / 2
    normed = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, keepdim=True, correction=0) + 0.1).sqrt()
    torch.testing.assert_close(head(x), head.linear(normed))


def test_of_tokens_in_a_row_the_first_is_pooled_and_transformed():
    embedding = Embedding(dim=16, vocab_size=9)
    head = PoolingHead(embedding=embedding, dim=16, num_labels=3, transform="tanh")
    x = torch.randn(2, 7, 16)
    torch.testing.assert_close(head(x), head.linear(head.transform(x[:, 0]).tanh()))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"embedding": partial(PATCHES, class_token=False)}, "set head=mean"),
        ({"embedding": partial(PATCHES, patch_size=20)}, "embedding.patch_size=20 is larger than"),
        ({"embedding": partial(PATCHES, patch_size=[2, 2, 2])}, "embedding.patch_size is .2, 2, 2.: give one number"),
        ({"embedding": partial(PATCHES, channels=0)}, "embedding.channels is 0"),
        ({"embedding": partial(PATCHES, class_token=False, distillation_token=True)}, "follows a class token"),
        ({"head": DistilledHead}, "set embedding.distillation_token=true"),
        ({"embedding": partial(PATCHES, class_token=False), "head": TokenMeanHead}, "head=token_mean scores the mean"),
        ({"head": partial(TokenMeanHead, norm_eps=0.0)}, "head.norm_eps is 0.0"),
        ({"head": Head}, "set head=class_token"),
        ({"head": partial(PoolingHead, dropout=1.0)}, "head.dropout is 1.0"),
        ({"embedding": Embedding}, "set embedding=patches"),
        ({"encoding": Fire}, "knows no positions on a grid"),
        ({"encoding": partial(Learned, max_len=99)}, "encoding.max_len and encoding.offset"),
        ({"vocab_size": 9, "num_labels": 5}, "set embedding=default"),
        ({"vocab_size": 9, "max_len": 8, "embedding": Embedding}, "set head=default"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_told(change, message):
    with pytest.raises(ValueError, match=message):
        new_model(**change)


def test_channels_are_those_of_the_model():
    with pytest.raises(ValueError, match=r"1 channels and the model reads embedding\.channels=3"):
        new_model(encoding=NoEncoding)(torch.randn(1, 1, 8, 12))
