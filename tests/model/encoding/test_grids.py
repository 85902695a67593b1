"""Encodings on a grid with a class token before it: each against its formula, written out in float64."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from tests.model.encoding.test_options import FILES, encoding_of
from txtrain.model import Shape, Stack
from txtrain.model.encoding import T5, Alibi, Kerple, Rope, Sinusoidal
from txtrain.model.grid import Grid
from txtrain.model.kernels import Scores, score_rule
from txtrain.model.mask import Mask

HEADS, DIM, GRID = 3, 24, Grid(size=(4, 5), prefix=1)
STACK = Stack(shape=Shape(dim=DIM, num_layers=2, num_heads=HEADS), causal=False, max_len=GRID.length, grid=GRID)
WHOLE = GRID.positions(GRID.size, torch.device("cpu"))
FINER = GRID.positions((8, 5), torch.device("cpu"))
CLOSE = {"rtol": 0, "atol": 1e-5}
KNOW_GRIDS = [file.stem for file in FILES if file.stem not in ("fire", "xpos")]


def places(positions):
    return positions[0].double().tolist()


def distance(one, other):
    return 0.0 if min(*one, *other) == -1 else math.dist(one, other)


@pytest.mark.parametrize("positions", [WHOLE, FINER], ids=["trained", "finer"])
def test_alibi_falls_with_the_straight_distance(positions):
    encoding = Alibi(stack=STACK)
    slopes = encoding.slope(torch.arange(HEADS)).double()
    expected = torch.tensor(
        [[[-s * distance(q, k) for k in places(positions)] for q in places(positions)] for s in slopes]
    )
    torch.testing.assert_close(encoding.bias(positions, positions)[0], expected.float(), **CLOSE)


def test_kerple_is_its_rule_of_the_straight_distance():
    encoding = Kerple(stack=STACK)
    apart = torch.tensor([[distance(q, k) for k in places(FINER)] for q in places(FINER)])
    rate, shape = (p.detach().double().exp()[:, None, None] for p in (encoding.rate, encoding.shape))
    expected = -shape * (1 + rate * apart).log()
    torch.testing.assert_close(encoding.bias(FINER, FINER)[0].double(), expected, **CLOSE)


def test_t5_adds_a_table_for_each_axis_and_has_three_rows_for_the_class_token():
    encoding = T5(stack=STACK, num_buckets=16, max_distance=20)
    row = T5(stack=Stack(shape=STACK.shape, causal=False, max_len=9), num_buckets=16, max_distance=20)
    table = encoding.table.weight.detach()

    def expected(q, k):
        if q[0] == -1 or k[0] == -1:
            return table[32 + (2 if q == k else 0 if q[0] == -1 else 1)]
        buckets = [row.bucket(torch.tensor(int(a)), torch.tensor(int(b))) for a, b in zip(q, k, strict=True)]
        return table[buckets[0]] + table[16 + buckets[1]]

    wanted = torch.stack([torch.stack([expected(q, k) for k in places(WHOLE)], 1) for q in places(WHOLE)], 1)
    torch.testing.assert_close(encoding.bias(WHOLE, WHOLE)[0], wanted, **CLOSE)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("positions", [WHOLE, FINER], ids=["trained", "finer"])
def test_rope_turns_half_of_the_pairs_by_each_axis(layout, positions):
    """Score of pairs: Re(q · conj(k) · e^(iφ)), φ = θ^(-2i/4) times the difference along the pair's axis."""
    encoding = Rope(stack=STACK, theta=100.0, layout=layout)
    length = positions.size(1)
    q, k = torch.randn(2, 1, HEADS, length, 8)
    tables = encoding.tables(positions)
    turned = [encoding.rotate(x, tables, role) for x, role in ((q, "query"), (k, "key"))]
    scores = (turned[0] @ turned[1].transpose(-2, -1))[0].double()

    def pairs(x):
        x = x[0].double()
        return (
            torch.complex(x[..., :4], x[..., 4:])
            if layout == "half"
            else torch.view_as_complex(x.unflatten(-1, (4, 2)))
        )

    where = positions[0].double().clamp(min=-1)
    where[where[:, 0] == -1] = 0  # a class token is not turned
    angles = torch.cat([where[:, :1], where[:, :1] * 0.1, where[:, 1:], where[:, 1:] * 0.1], dim=1)
    turn = torch.exp(1j * (angles[:, None] - angles[None]))
    products = pairs(q)[:, :, None] * pairs(k)[:, None].conj() * turn
    torch.testing.assert_close(scores, products.real.sum(-1), rtol=0, atol=2e-5)
    assert torch.equal(turned[0][:, :, 0], q[:, :, 0])


def test_sinusoidal_has_half_of_the_waves_for_each_axis_and_none_for_the_class_token():
    waves = Sinusoidal(stack=STACK).embed(torch.zeros(1, FINER.size(1), DIM), FINER)[0]
    expected = torch.zeros_like(waves)
    for token, place in enumerate(places(FINER)[1:], start=1):
        expected[token] = torch.tensor(
            [f(p / 10000 ** (2 * i / 12)) for p in place for i in range(6) for f in (math.sin, math.cos)]
        )
    torch.testing.assert_close(waves, expected, **CLOSE)


@pytest.mark.parametrize("name", KNOW_GRIDS)
def test_fractions_that_are_whole_are_the_same_as_integers(name):
    torch.manual_seed(0)
    encoding = encoding_of(name)(stack=STACK)
    x = torch.randn(1, WHOLE.size(1), DIM)
    heads = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    torch.testing.assert_close(encoding.embed(x, WHOLE.float()), encoding.embed(x, WHOLE), **CLOSE)
    rotated = [encoding.rotate(heads, encoding.tables(positions), "query") for positions in (WHOLE.float(), WHOLE)]
    torch.testing.assert_close(*rotated, **CLOSE)
    if encoding.has_bias:
        torch.testing.assert_close(encoding.bias(WHOLE.float(), WHOLE.float()), encoding.bias(WHOLE, WHOLE), **CLOSE)


@pytest.mark.parametrize("name", ["alibi", "kerple", "t5"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_the_rule_of_one_score_gives_what_the_whole_bias_does(name):
    torch.manual_seed(0)
    encoding = encoding_of(name)(stack=STACK)
    q, k, v = torch.randn(3, 2, HEADS, WHOLE.size(1), 16)
    scores = Scores(mask=Mask(causal=False), encoding=encoding, q_positions=FINER[:, :21], k_positions=FINER[:, :21])
    one_by_one = flex_attention(q, k, v, score_rule(scores, None), scale=0.25)
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, v, scores.bias(), scale=0.25)
    torch.testing.assert_close(one_by_one, whole, **CLOSE)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: encoding_of("fire")(stack=STACK), "encoding=fire knows no positions on a grid"),
        (lambda: encoding_of("rope scaling=linear factor=2")(stack=STACK), "encoding.scaling=linear is for longer"),
        (lambda: encoding_of("rope fraction=0.25")(stack=STACK), r"a multiple of 4, such as model.head_dim=8"),
        (lambda: encoding_of("sinusoidal")(stack=replace(STACK, shape=Shape(dim=6, num_layers=1, num_heads=1))), "=8"),
    ],
)
def test_what_cannot_be_on_a_grid_is_told(build, message):
    with pytest.raises(ValueError, match=message):
        build()
