"""What encodings make of pairs of positions, against formulas written out and other implementations."""

import math

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from txtrain.config import config_directory, options
from txtrain.model import Shape, Stack
from txtrain.model.encoding import T5, Alibi, Learned, Rope, Sinusoidal, XPos
from txtrain.model.encoding.similarity import relations
from txtrain.model.grid import Grid

T, H, D = 12, 4, 32
ROW = torch.arange(T)[None]
DISTANCE = (torch.arange(T)[:, None] - torch.arange(T)).double()
GRID = Grid(size=(3, 4), prefix=1)


def stack(causal=True, grid=None):
    length = T if grid is None else grid.length
    return Stack(shape=Shape(dim=D, num_layers=1, num_heads=H), causal=causal, max_len=length, grid=grid)


def frequencies(dim):
    return 10000.0 ** -(torch.arange(0, dim, 2).double() / dim)


def close(found, expected):
    torch.testing.assert_close(found.double(), expected.double().expand_as(found), rtol=1e-5, atol=1e-5)


def test_waves_are_alike_by_the_mean_cosine_of_their_distance():
    found = relations(Sinusoidal(stack=stack()), ROW)
    assert list(found) == ["embed"]
    close(found["embed"], (DISTANCE[..., None] * frequencies(D)).cos().mean(-1))


def test_learned_vectors_have_their_cosine():
    encoding = Learned(stack=stack())
    [found] = relations(encoding, ROW).values()
    table = encoding.table.weight.detach().double()
    close(found, torch.nn.functional.cosine_similarity(table[:, None], table[None], dim=-1))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotations_leave_the_mean_cosine_of_the_angle(layout):
    found = relations(Rope(stack=stack(), theta=100.0, layout=layout), ROW)
    assert list(found) == ["rotate"]
    angles = DISTANCE[..., None] * 100.0 ** -(torch.arange(0, 8, 2).double() / 8)
    close(found["rotate"], angles.cos().mean(-1))
    close(relations(Rope(stack=stack(), fraction=0.5), ROW)["rotate"], _half_turned())


def _half_turned():
    """The half of the dimensions that does not turn keeps its share."""
    return (DISTANCE[..., None] * frequencies(4)).cos().mean(-1) / 2 + 0.5


def test_xpos_fades():
    found = relations(XPos(stack=stack(), scale_base=8.0), ROW)["rotate"]
    zeta = (torch.arange(0, 8, 2).double() / 8 + 0.4) / 1.4
    expected = (DISTANCE[..., None] * frequencies(8)).cos() * zeta ** (DISTANCE[..., None] / 8)
    close(found, expected.mean(-1))


def test_a_bias_is_what_scores_get():
    found = relations(Alibi(stack=stack()), ROW)
    assert list(found) == ["bias"]
    close(found["bias"], -(2.0 ** -(2.0 * torch.arange(1, H + 1)))[:, None, None] * DISTANCE.abs())
    for causal in (True, False):
        encoding = T5(stack=stack(causal), num_buckets=8, max_distance=10)
        theirs = T5Attention(
            T5Config(
                num_heads=H, relative_attention_num_buckets=8, relative_attention_max_distance=10, is_decoder=causal
            ),
            has_relative_attention_bias=True,
            layer_idx=0,
        )
        theirs.relative_attention_bias.weight.data = encoding.table.weight.data
        close(relations(encoding, ROW)["bias"], theirs.compute_bias(T, T)[0].detach())


def test_on_a_grid_it_is_the_distance_along_each_axis():
    positions = GRID.positions(GRID.size, torch.device("cpu"))
    rows, columns = positions[0, 1:].double().unbind(-1)
    apart = [(axis[:, None] - axis).abs() for axis in (rows, columns)]
    rope = relations(Rope(stack=stack(False, GRID)), positions)["rotate"]
    half = [(axis[..., None] * frequencies(4)).cos().mean(-1) for axis in apart]
    close(rope[:, 1:, 1:], (half[0] + half[1]) / 2)
    waves = relations(Sinusoidal(stack=stack(False, GRID)), positions)["embed"]
    half = [(axis[..., None] * frequencies(D // 2)).cos().mean(-1) for axis in apart]
    close(waves[:, 1:, 1:], (half[0] + half[1]) / 2)
    assert not waves[:, 0].any()  # a class token has no wave
    straight = (apart[0] ** 2 + apart[1] ** 2).sqrt()
    bias = relations(Alibi(stack=stack(False, GRID)), positions)["bias"]
    close(bias[:, 1:, 1:], -(2.0 ** -(2.0 * torch.arange(1, H + 1)))[:, None, None] * straight)


@pytest.mark.parametrize("name", options(config_directory(), "encoding"))
def test_every_option_but_none_shows_itself(name):
    node = OmegaConf.load(config_directory() / "encoding" / f"{name}.yaml")
    found = relations(instantiate(node, _convert_="all")(stack=stack()), ROW)
    assert bool(found) == (name != "none")
    for relation in found.values():
        assert relation.shape in ((1, T, T), (H, T, T)) and relation.isfinite().all()


def test_what_sharpens_scores_shows_where_positions_are_equal():
    encoding = Rope(stack=stack(), scaling="yarn", factor=4.0, original_len=T)
    equal = relations(encoding, ROW)["rotate"][0].diagonal()
    torch.testing.assert_close(equal, torch.full((T,), (0.1 * math.log(4) + 1) ** 2))
