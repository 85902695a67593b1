"""Positions keep their precision inside a running model, whatever the engine casts: looked at in real processes.

Positions start at 1000, where bfloat16 has only every fourth.
"""

import pytest
import torch

from tests.strategy.cases import run

FIRST = 1000
STRATEGIES = ["ddp", "fsdp", "deepspeed_zero2", "deepspeed_zero3"]
PRECISIONS = ["bf16-mixed", "bf16-true"]
ENCODINGS = ["Rope", "XPos", "Sinusoidal", "Alibi"]
KEYS = [
    (strategy, precision, encoding) for strategy in STRATEGIES for precision in PRECISIONS for encoding in ENCODINGS
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    names = ("strategy", "precision", "encoding")
    cases = [{"action": "watch", "first_position": FIRST} | dict(zip(names, key, strict=True)) for key in KEYS]
    return dict(zip(KEYS, run(tmp_path_factory.mktemp("positions"), 2, cases), strict=True))


def angles(positions, dim):
    """position · 10000^(-2i/dim), in float64."""
    return positions[..., None].double() * 10000.0 ** (-torch.arange(0, dim, 2).double() / dim)


def assert_float32(found, expected, tolerance):
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return request.param


@pytest.fixture(params=PRECISIONS)
def seen(request, results, strategy):
    """What the encodings of one run each were given and made, by encoding."""
    return {encoding: results[strategy, request.param, encoding] for encoding in ENCODINGS}


@pytest.mark.slow
def test_tables_of_rotations_are_float32(seen):
    (positions,), (cos, sin) = seen["Rope"]["tables"]
    assert positions.dtype == torch.int64
    assert positions.min() == FIRST
    half = angles(positions, 8)[:, None]
    assert_float32(cos, torch.cat((half.cos(), half.cos()), dim=-1), 2e-4)
    assert_float32(sin, torch.cat((-half.sin(), half.sin()), dim=-1), 2e-4)


@pytest.mark.slow
def test_tables_of_xpos_are_float32(seen):
    (positions,), tables = seen["XPos"]["tables"]
    half = angles(positions, 8)[:, None]
    zeta = (torch.arange(0, 8, 2).double() / 8 + 0.4) / 1.4
    growth = zeta ** ((positions - 6)[:, None, :, None].double() / 512)
    for role, factor in (("query", growth), ("key", 1 / growth)):
        cos, sin = half.cos() * factor, half.sin() * factor
        assert_float32(tables[role][0], torch.cat((cos, cos), dim=-1), 1e-3)
        assert_float32(tables[role][1], torch.cat((-sin, sin), dim=-1), 1e-3)


@pytest.mark.slow
def test_waves_are_rounded_once(seen):
    """In bfloat16 the sum is right to its last bit; waves of rounded positions would be wrong in the first."""
    (x, positions), result = seen["Sinusoidal"]["embed"]
    turns = angles(positions, 16)
    waves = torch.stack((turns.sin(), turns.cos()), dim=-1).flatten(-2)
    assert result.dtype == x.dtype
    torch.testing.assert_close(result.double(), x.double() + waves, rtol=2**-8, atol=1e-3)


@pytest.mark.slow
def test_penalties_of_distance_are_float32(seen):
    (q_positions, k_positions), bias = seen["Alibi"]["bias"]
    assert q_positions.dtype == k_positions.dtype == torch.int64
    slopes = torch.tensor([2.0**-4, 2.0**-8]).double()[None, :, None, None]  # of two heads
    distance = (q_positions[:, None, :, None] - k_positions[:, None, None, :]).abs()
    assert_float32(bias, -slopes * distance, 1e-6)
