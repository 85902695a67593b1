"""Rotary positions against transformers' Llama, GPT-NeoX and GPT-J, and what holds for every rotation."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXConfig, GPTNeoXRotaryEmbedding
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as turn_gpt_neox
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as turn_gptj
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as turn_llama

from txtrain.model import Shape, Stack
from txtrain.model.encoding import Rope, XPos

CLOSE = {"rtol": 0, "atol": 1e-5}
HEAD_DIM, LENGTH = 32, 100


def new_stack(head_dim=HEAD_DIM, causal=True):
    shape = Shape(dim=64, num_layers=2, num_heads=2, head_dim=head_dim)
    return Stack(shape=shape, causal=causal, max_len=64)


def turned(encoding, q, k, positions):
    tables = encoding.tables(positions)
    return encoding.rotate(q, tables, "query"), encoding.rotate(k, tables, "key")


@pytest.fixture
def qk():
    return torch.randn(2, 2, 3, LENGTH, HEAD_DIM, generator=torch.Generator().manual_seed(0))


SCALINGS = [
    ({}, {"rope_type": "default"}),
    ({"scaling": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ({"scaling": "dynamic", "factor": 2.0, "original_len": 40}, {"rope_type": "dynamic", "factor": 2.0}),
    ({"scaling": "dynamic", "factor": 2.0, "original_len": 400}, {"rope_type": "dynamic", "factor": 2.0}),
    ({"scaling": "yarn", "factor": 4.0, "original_len": 40}, {"rope_type": "yarn", "factor": 4.0}),
    ({"scaling": "yarn", "factor": 16.0, "original_len": 4096}, {"rope_type": "yarn", "factor": 16.0}),
    (
        {"scaling": "yarn", "factor": 4.0, "original_len": 200, "band": [2.0, 16.0], "attention_factor": 1.5},
        {"rope_type": "yarn", "factor": 4.0, "beta_slow": 2.0, "beta_fast": 16.0, "attention_factor": 1.5},
    ),
    (
        {"scaling": "llama3", "factor": 8.0, "original_len": 256},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    (
        {"scaling": "llama3", "factor": 8.0, "original_len": 8192, "band": [2.0, 9.0]},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 9.0},
    ),
]


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("ours, theirs", SCALINGS)
def test_every_scaling_turns_as_llama(qk, ours, theirs, theta):
    original = ours.get("original_len", LENGTH)
    rope = {"rope_theta": theta} | theirs
    if ours.get("scaling") in ("yarn", "llama3"):
        rope["original_max_position_embeddings"] = original
    config = LlamaConfig(
        hidden_size=2 * HEAD_DIM, num_attention_heads=2, max_position_embeddings=original, rope_parameters=rope
    )
    positions = torch.arange(LENGTH)[None]
    cos, sin = LlamaRotaryEmbedding(config)(qk, positions)
    expected = turn_llama(*qk, cos, sin)
    for got, want in zip(turned(Rope(stack=new_stack(), theta=theta, **ours), *qk, positions), expected, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.9])
def test_part_of_the_head_turns_as_in_gpt_neox(qk, fraction):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": fraction}
    config = GPTNeoXConfig(hidden_size=2 * HEAD_DIM, num_attention_heads=2, rope_parameters=rope)
    positions = torch.arange(LENGTH)[None]
    expected = turn_gpt_neox(*qk, *GPTNeoXRotaryEmbedding(config)(qk, positions))
    for got, want in zip(turned(Rope(stack=new_stack(), fraction=fraction), *qk, positions), expected, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


def test_interleaved_pairs_turn_as_in_gptj(qk):
    sin, cos = create_sinusoidal_positions(LENGTH, HEAD_DIM)[None].chunk(2, dim=-1)
    rope = Rope(stack=new_stack(), layout="interleaved")
    for got, x in zip(turned(rope, *qk, torch.arange(LENGTH)[None]), qk, strict=True):
        want = turn_gptj(x.transpose(1, 2), sin, cos).transpose(1, 2)
        torch.testing.assert_close(got, want, **CLOSE)


def test_layouts_are_the_same_up_to_the_order_of_dimensions(qk):
    order = torch.arange(HEAD_DIM).view(2, -1).T.flatten()
    positions = torch.arange(LENGTH)[None]
    half, _ = turned(Rope(stack=new_stack()), *qk, positions)
    interleaved, _ = turned(Rope(stack=new_stack(), layout="interleaved"), *qk[..., order], positions)
    torch.testing.assert_close(half[..., order], interleaved)


@pytest.mark.parametrize("encoding_class", [Rope, XPos])
@pytest.mark.parametrize("settings", [{}, {"layout": "interleaved"}])
def test_scores_depend_on_differences_only(qk, encoding_class, settings):
    encoding = encoding_class(stack=new_stack(), **settings)

    def scores(start):
        q, k = turned(encoding, *qk, torch.arange(start, start + LENGTH)[None])
        return q @ k.transpose(-2, -1)

    torch.testing.assert_close(scores(1000), scores(0), rtol=0, atol=5e-3)


def test_each_row_has_its_own_positions(qk):
    rope, positions = Rope(stack=new_stack()), torch.stack((torch.arange(LENGTH), torch.arange(LENGTH).flip(0)))
    together, _ = turned(rope, *qk, positions)
    for row in range(2):
        alone, _ = turned(rope, *qk[:, row : row + 1], positions[row : row + 1])
        torch.testing.assert_close(together[row], alone[0])


def test_dynamic_scaling_of_a_row_ignores_the_batch():
    rope = Rope(stack=new_stack(), scaling="dynamic", factor=2.0, original_len=40)
    short, long = torch.arange(30), torch.arange(30) + 200
    together = rope.tables(torch.stack((short, long)))[0]
    torch.testing.assert_close(together[0], rope.tables(short[None])[0][0])
    torch.testing.assert_close(together[1], rope.tables(long[None])[0][0])


@pytest.mark.parametrize("encoding_class", [Rope, XPos])
def test_a_bfloat16_model_keeps_float32_positions(encoding_class):
    """bfloat16 holds 8 bits: 256 and 257 are one number to it."""
    plain, cast = encoding_class(stack=new_stack()), encoding_class(stack=new_stack()).bfloat16()
    positions = torch.tensor([[256, 257]])
    x = torch.ones(1, 1, 2, HEAD_DIM)
    assert not torch.equal(*cast.rotate(x.bfloat16(), cast.tables(positions), "query").unbind(2))
    exact = plain.rotate(x, plain.tables(positions), "query")
    rounded = cast.rotate(x.bfloat16(), cast.tables(positions), "query")
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, exact.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings, fix",
    [
        ({"head_dim": 5}, "model.head_dim=6"),
        ({"fraction": 0.1}, "encoding.fraction=0.1 leaves 3"),
        ({"fraction": 0.01}, "leaves 0"),
        ({"fraction": 1.5}, "encoding.fraction=0.5"),
        ({"theta": 1.0}, "encoding.theta=10000"),
        ({"scaling": "linear"}, "set encoding.factor=4"),
        ({"scaling": "linear", "factor": 0.5}, "set encoding.factor=4"),
        ({"scaling": "yarn", "factor": 4.0}, "set encoding.original_len=2048"),
        ({"scaling": "dynamic", "factor": 4.0, "original_len": 0}, "set encoding.original_len=2048"),
        ({"scaling": "dynamic", "factor": 4.0, "original_len": 64, "fraction": 2 / 32}, "set encoding.scaling=linear"),
        ({"scaling": "llama3", "factor": 4.0, "original_len": 64, "band": [4.0, 1.0]}, r"encoding\.band=\[1,32\]"),
        ({"factor": 4.0}, "set encoding.scaling=linear or dynamic or yarn or llama3, or leave encoding.factor out"),
        ({"scaling": "linear", "factor": 4.0, "original_len": 64}, "set encoding.scaling=dynamic or yarn or llama3"),
        (
            {"scaling": "llama3", "factor": 4.0, "original_len": 64, "attention_factor": 2.0},
            "set encoding.scaling=yarn, or leave encoding.attention_factor out",
        ),
    ],
)
def test_errors_are_one_line_with_the_override_to_type(settings, fix):
    settings = dict(settings)
    with pytest.raises(ValueError, match=fix) as error:
        Rope(stack=new_stack(settings.pop("head_dim", HEAD_DIM)), **settings)
    assert "\n" not in str(error.value)
