"""Dynamic NTK: what a sequence gets depends on its own length alone, in a batch, a packed row or a cache."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from txtrain.model import Decoder, EncoderWithHead, Shape
from txtrain.model.attention import Attention
from txtrain.model.embed import Embedding
from txtrain.model.encoding import Rope
from txtrain.model.ffn import GatedFeedForward
from txtrain.model.head import Head
from txtrain.model.kernels import Scores
from txtrain.model.mask import Mask
from txtrain.model.norm import PreNorm

LENGTHS = (24, 5, 15, 9)  # shorter and longer than the old length
OLD, VOCAB, END = 8, 30, 7
CLOSE = 1e-6  # tables are float32


def new_model(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = kind(
        vocab_size=VOCAB,
        max_len=64,
        shape=Shape(dim=16, num_layers=2, num_heads=2),
        embedding=Embedding,
        head=Head,
        ffn=GatedFeedForward,
        encoding=partial(Rope, scaling="dynamic", factor=4.0, original_len=OLD),
        norm=PreNorm,
        attention=Attention,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model.eval().double()


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCAB, (length,), generator=generator) for length in LENGTHS]


@pytest.mark.parametrize("restart", [True, False], ids=["positions restart", "positions go on"])
@pytest.mark.parametrize("kind", [Decoder, EncoderWithHead])
@torch.inference_mode()
def test_packed_documents_equal_those_alone(kind: type[nn.Module], restart: bool) -> None:
    model, parts = new_model(kind), sequences()
    packed, end = [*parts, torch.zeros(END, dtype=torch.long)], sum(LENGTHS)
    row = torch.cat(packed)[None]
    documents = torch.cat([torch.full((len(part),), number) for number, part in enumerate(packed)])[None]
    own = torch.cat([torch.arange(len(part)) for part in packed])
    positions = own[None] if restart else torch.arange(end + END)[None]
    padding = torch.arange(end + END)[None] < end
    logits = model(row, positions, documents=documents, padding=padding)[0, :end]
    alone = torch.cat([model(part[None])[0] for part in parts])
    torch.testing.assert_close(logits, alone, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("pad_position", [0, 100], ids=["small", "large"])
@pytest.mark.parametrize("kind", [Decoder, EncoderWithHead])
@torch.inference_mode()
def test_padded_sequences_equal_those_alone(kind: type[nn.Module], left: bool, pad_position: int) -> None:
    """Whatever position padding has; on the right it has those that go on, as batches have them."""
    model, parts, width = new_model(kind), sequences(), max(LENGTHS)
    tokens, padding = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width, dtype=torch.bool)
    positions = torch.full((4, width), pad_position)
    for row, part in enumerate(parts):
        at = slice(width - len(part), None) if left else slice(len(part))
        tokens[row, at], padding[row, at], positions[row, at] = part, True, torch.arange(len(part))
    logits = model(tokens, positions, padding=padding)
    alone = torch.cat([model(part[None])[0] for part in parts])
    torch.testing.assert_close(logits[padding], alone, rtol=0, atol=CLOSE)
    if not left:
        torch.testing.assert_close(model(tokens, padding=padding)[padding], alone, rtol=0, atol=CLOSE)


@torch.inference_mode()
def test_a_cached_batch_with_padding_on_both_sides_equals_each_alone() -> None:
    model, parts = new_model(Decoder), sequences()[:2]
    tokens, padding = torch.zeros(2, 26, dtype=torch.long), torch.zeros(2, 26, dtype=torch.bool)
    positions = torch.arange(26).repeat(2, 1)
    for row, (part, begin) in enumerate(zip(parts, (1, 3), strict=True)):
        tokens[row, begin : begin + len(part)], padding[row, begin : begin + len(part)] = part, True
        positions[row] = (positions[row] - begin).clamp(min=0)
    cache = model.new_cache(batch=2)
    for a, b in ((0, 6), (6, 7), (7, 20), (20, 26)):
        logits = model(tokens[:, a:b], positions[:, a:b], padding=padding[:, a:b], cache=cache)
        for row, (part, begin) in enumerate(zip(parts, (1, 3), strict=True)):
            real = padding[row, a:b]
            if real.any():
                alone = model(part[None, : b - begin])[0, max(a - begin, 0) :]
                torch.testing.assert_close(logits[row, real], alone, rtol=0, atol=CLOSE)


def test_each_document_has_the_tables_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = new_model(Decoder).stack.encoding
    documents = torch.cat([torch.full((length,), number) for number, length in enumerate(LENGTHS)])[None]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    scores = Scores(
        mask=Mask(causal=True, documents=documents), encoding=rope, q_positions=positions, k_positions=positions
    )
    cos, _ = rope.tables(positions, scores.lengths())
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_attention_heads=2,
        max_position_embeddings=OLD,
        rope_parameters={
            "rope_type": "dynamic",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": OLD,
        },
    )
    expected = [LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])[0][0] for length in LENGTHS]
    torch.testing.assert_close(cos[0, 0], torch.cat(expected), rtol=0, atol=1e-6)
