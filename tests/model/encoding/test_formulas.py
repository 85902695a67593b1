"""Each encoding against its paper's formula in float64, written out here a second time, or against transformers."""

import math

import pytest
import torch
from transformers import T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from txtrain.model import Shape, Stack
from txtrain.model.encoding import T5, Alibi, Fire, Kerple, Learned, Sinusoidal, XPos

TIMES = torch.arange(40)[None]
CLOSE = {"rtol": 0, "atol": 1e-5}


def new_stack(heads=4, causal=True, dim=None, max_len=64):
    return Stack(shape=Shape(dim=dim or 8 * heads, num_layers=2, num_heads=heads), causal=causal, max_len=max_len)


def distances():
    return (TIMES[0][:, None] - TIMES[0]).double()


def test_sinusoidal_is_the_papers():
    waves = Sinusoidal(stack=new_stack(dim=8)).embed(torch.zeros(1, 40, 8), TIMES)[0]
    expected = torch.tensor(
        [[f(p / 10000 ** (2 * i / 8)) for i in range(4) for f in (math.sin, math.cos)] for p in range(40)]
    )
    torch.testing.assert_close(waves, expected, **CLOSE)


def test_half_layout_has_all_sines_before_the_cosines():
    """As Marian, which adds it to its token vectors."""
    table = MarianSinusoidalPositionalEmbedding(40, 8)
    table.weight.copy_(torch.as_tensor(table.create_weight()))
    waves = Sinusoidal(stack=new_stack(dim=8), layout="half").embed(torch.zeros(1, 40, 8), TIMES)[0]
    torch.testing.assert_close(waves, table.weight, rtol=1e-5, atol=1e-5)


def test_sinusoidal_takes_any_position():
    far = torch.tensor([[10**6]])
    wave = Sinusoidal(stack=new_stack(dim=8)).embed(torch.zeros(1, 1, 8), far)[0, 0, 0]
    assert wave.item() == pytest.approx(math.sin(10**6), abs=1e-5)


def test_learned_adds_the_row_of_each_position():
    encoding = Learned(stack=new_stack(dim=8))
    positions = torch.tensor([[3, 0], [1, 63]])
    x = torch.randn(2, 2, 8)
    torch.testing.assert_close(encoding.embed(x, positions), x + encoding.table.weight[positions])


def test_learned_offset_skips_the_first_rows():
    encoding = Learned(stack=new_stack(dim=8), offset=2)
    assert encoding.table.num_embeddings == 66
    positions = torch.tensor([[3, 0], [1, 63]])
    added = encoding.embed(torch.zeros(2, 2, 8), positions)
    torch.testing.assert_close(added, encoding.table.weight[positions + 2])
    with pytest.raises(ValueError, match="position 64 is outside the table of 64"):
        encoding.embed(torch.zeros(1, 1, 8), torch.tensor([[64]]))
    with pytest.raises(ValueError, match=r"encoding\.offset=2"):
        Learned(stack=new_stack(), offset=-1)


@pytest.mark.parametrize("positions", [torch.arange(65)[None], torch.tensor([[64]])])
def test_learned_refuses_positions_beyond_its_table(positions):
    encoding = Learned(stack=new_stack(dim=8))
    with pytest.raises(ValueError, match=r"position 64 is outside the table of 64.*encoding\.max_len=65"):
        encoding.embed(torch.zeros(1, positions.size(1), 8), positions)


def test_learned_table_may_be_longer_than_training():
    assert Learned(stack=new_stack(), max_len=100).table.num_embeddings == 100
    with pytest.raises(ValueError, match=r"max_len=32 rows.*set data\.seq_len=32"):
        Learned(stack=new_stack(), max_len=32)


def published_alibi_slopes(heads):
    """The recursion in the ALiBi authors' code."""
    if math.log2(heads).is_integer():
        ratio = 2 ** -(2 ** -(math.log2(heads) - 3))
        return [ratio ** (i + 1) for i in range(heads)]
    lower = 2 ** math.floor(math.log2(heads))
    return published_alibi_slopes(lower) + published_alibi_slopes(2 * lower)[0::2][: heads - lower]


@pytest.mark.parametrize("heads", range(1, 41))
def test_alibi_slopes_of_any_number_of_heads(heads):
    slopes = Alibi(stack=new_stack(heads)).slope(torch.arange(heads))
    torch.testing.assert_close(slopes, torch.tensor(published_alibi_slopes(heads)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("causal", [True, False])
def test_alibi_falls_linearly_on_both_sides(causal):
    bias = Alibi(stack=new_stack(12, causal)).bias(TIMES, TIMES)[0]
    expected = -torch.tensor(published_alibi_slopes(12)).double()[:, None, None] * distances().abs()
    torch.testing.assert_close(bias.double(), expected, **CLOSE)


@pytest.mark.parametrize("heads", [4, 6])
def test_alibi_is_blooms_up_to_what_softmax_ignores(heads):
    bias = Alibi(stack=new_stack(heads)).bias(TIMES, TIMES)[0]
    bloom = build_alibi_tensor(torch.ones(1, 40), heads, torch.float32)
    causal = torch.ones(40, 40).tril().log()
    torch.testing.assert_close((bias + causal).softmax(-1), (bloom + causal).softmax(-1), **CLOSE)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("buckets, furthest", [(32, 128), (32, 20), (8, 1000), (6, 7)])
def test_t5_is_transformers(causal, buckets, furthest):
    encoding = T5(stack=new_stack(causal=causal), num_buckets=buckets, max_distance=furthest)
    config = T5Config(
        num_heads=4, relative_attention_num_buckets=buckets, relative_attention_max_distance=furthest, is_decoder=causal
    )
    reference = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    reference.relative_attention_bias.weight.data.copy_(encoding.table.weight)
    times = torch.arange(300)[None]
    assert torch.equal(encoding.bias(times, times), reference.compute_bias(300, 300))


@pytest.mark.parametrize(
    "causal, buckets, furthest, fix",
    [(False, 7, 128, "encoding.num_buckets=32"), (True, 1, 128, "encoding.num_buckets=32"), (True, 32, 16, "=128")],
)
def test_t5_refuses_buckets_that_cannot_be(causal, buckets, furthest, fix):
    with pytest.raises(ValueError, match=fix):
        T5(stack=new_stack(causal=causal), num_buckets=buckets, max_distance=furthest)


@pytest.mark.parametrize("causal", [True, False])
def test_kerple_log(causal):
    encoding = Kerple(stack=new_stack(causal=causal))
    rate, shape = (p.detach().double().exp()[:, None, None] for p in (encoding.rate, encoding.shape))
    expected = -shape * (1 + rate * distances().abs()).log()
    torch.testing.assert_close(encoding.bias(TIMES, TIMES)[0].double(), expected, **CLOSE)


def test_kerple_power():
    encoding = Kerple(stack=new_stack(), variant="power")
    rate = encoding.rate.detach().double().exp()[:, None, None]
    power = 2 / (1 + (-encoding.shape.detach().double()).exp())[:, None, None]
    expected = -rate * distances().abs() ** power
    torch.testing.assert_close(encoding.bias(TIMES, TIMES)[0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["log", "power"])
def test_kerple_starts_in_the_authors_range(variant):
    encoding = Kerple(stack=new_stack(512, dim=512), variant=variant)
    rate = encoding.rate.exp()
    shape = encoding.shape.exp() if variant == "log" else 2 * encoding.shape.sigmoid()
    assert 0.0099 < rate.min() < 0.05
    assert 0.95 < rate.max() <= 1
    assert 0.0099 < shape.min() < 0.05
    assert 1.9 < shape.max() <= 2


def fire_formula(encoding, signed):
    c, start = encoding.c.item(), encoding.start * encoding.threshold.item()
    weights = [p.detach().double() for p in (*encoding.hidden.parameters(), *encoding.out.parameters())]

    def bias(i, j):
        ratio = math.log(c * abs(i - j) + 1) / (math.log(c * max(i, j, start) + 1) + 1e-6)
        ratio = math.copysign(ratio, i - j) if signed else ratio
        hidden = (weights[0][:, 0] * ratio + weights[1]).relu()
        return weights[2] @ hidden + weights[3]

    return bias


@pytest.mark.parametrize("causal", [True, False])
def test_fire_is_the_papers_network_of_relative_log_distance(causal):
    encoding = Fire(stack=new_stack(causal=causal))
    encoding.threshold.data.fill_(0.7)
    bias, expected = encoding.bias(TIMES, TIMES)[0].double(), fire_formula(encoding, signed=not causal)
    for i in range(40):
        for j in range(i + 1 if causal else 40):
            torch.testing.assert_close(bias[:, i, j], expected(i, j), **CLOSE)


def test_fire_starts_at_the_papers_threshold():
    assert Fire(stack=new_stack(max_len=2048)).start == 512
    assert Fire(stack=new_stack(max_len=2048), threshold=100.0).start == 100


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_xpos_is_rope_times_decay(layout):
    """Score of pairs (a, b) in float64: Re(q · conj(k) · e^(iφ(p - q))) · ζ^((p - q) / scale_base), summed."""
    encoding = XPos(stack=new_stack(), layout=layout)
    q, k = torch.randn(2, 1, 4, 40, 8)
    turned_q = encoding.rotate(q, encoding.tables(TIMES), "query")
    turned_k = encoding.rotate(k, encoding.tables(TIMES), "key")
    scores = (turned_q @ turned_k.transpose(-2, -1))[0].double()

    def pairs(x):
        x = x[0].double()
        return (
            torch.complex(x[..., :4], x[..., 4:])
            if layout == "half"
            else torch.view_as_complex(x.unflatten(-1, (4, 2)))
        )

    index = torch.arange(0, 8, 2).double() / 8
    turn = torch.exp(1j * distances()[..., None] * 10000.0**-index)
    decay = ((index + 0.4) / 1.4) ** (distances()[..., None] / 512)
    products = pairs(q)[:, :, None] * pairs(k)[:, None].conj() * turn * decay
    torch.testing.assert_close(scores, products.real.sum(-1), **CLOSE)


def test_xpos_looks_back_only():
    with pytest.raises(ValueError, match="set encoding=rope"):
        XPos(stack=new_stack(causal=False))


@pytest.mark.parametrize(
    "build, fix",
    [
        (lambda: Sinusoidal(stack=new_stack(1, dim=7)), "set model.dim=8"),
        (lambda: Sinusoidal(stack=new_stack(), base=1.0), "encoding.base=10000"),
        (lambda: XPos(stack=new_stack(), scale_base=0.0), "encoding.scale_base=512"),
        (lambda: XPos(stack=new_stack(), gamma=0.0), "encoding.gamma=0.4"),
        (lambda: Fire(stack=new_stack(), width=0), "encoding.width=32"),
        (lambda: Fire(stack=new_stack(), c=0.0), "encoding.c=0.1"),
        (lambda: Fire(stack=new_stack(), threshold=0.0), "encoding.threshold=512"),
    ],
)
def test_errors_are_one_line_with_the_override_to_type(build, fix):
    with pytest.raises(ValueError, match=fix) as error:
        build()
    assert "\n" not in str(error.value)
