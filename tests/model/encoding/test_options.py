"""What every option of the encoding axis promises, read from conf/encoding so that a new one is tested too."""

import inspect
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from txtrain.model import Decoder, Encoder, EncoderDecoder, Shape, Stack
from txtrain.model.attention import Attention
from txtrain.model.embed import Embedding
from txtrain.model.ffn import GatedFeedForward
from txtrain.model.head import Head, Loss
from txtrain.model.norm import PreNorm

FILES = sorted((Path(__file__).parents[3] / "conf/encoding").glob("*.yaml"))
NAMES = [file.stem for file in FILES]
VARIANTS = [
    *NAMES,
    "kerple variant=power",
    "rope layout=interleaved",
    "rope fraction=0.5",
    "rope scaling=linear factor=2",
    "rope scaling=dynamic factor=2 original_len=8",
    "rope scaling=yarn factor=2 original_len=8",
    "rope scaling=llama3 factor=2 original_len=8",
]
ABSOLUTE = {"sinusoidal", "learned", "fire"}
DECODERS_ONLY = {"xpos"}
VOCAB, LENGTH, HEADS = 30, 12, 3


def encoding_of(words):
    name, *overrides = words.split()
    file = next(file for file in FILES if file.stem == name)
    return instantiate(OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_dotlist(overrides)), _convert_="all")


def encoding_for(words, causal=True, max_len=LENGTH):
    torch.manual_seed(0)
    stack = Stack(shape=Shape(dim=24, num_layers=2, num_heads=HEADS), causal=causal, max_len=max_len)
    return encoding_of(words)(stack=stack)


def new_model(model_class, words, max_len=LENGTH, dropout=0.0):
    torch.manual_seed(0)
    parts = {"norm": PreNorm, "attention": Attention, "ffn": GatedFeedForward, "embedding": Embedding}
    parts |= {} if model_class is Encoder else {"head": Head}
    shape = Shape(dim=24, num_layers=2, num_heads=HEADS, dropout=dropout)
    return model_class(vocab_size=VOCAB, max_len=max_len, shape=shape, encoding=encoding_of(words), **parts)


@pytest.fixture
def tokens():
    return torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def sides(words):
    return [True] if words.split()[0] in DECODERS_ONLY else [True, False]


CASES = [(words, causal) for words in VARIANTS for causal in sides(words)]


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_the_file_shows_every_argument_with_its_default(file):
    settings = OmegaConf.load(file)
    arguments = inspect.signature(get_class(settings.pop("_target_"))).parameters
    defaults = {name: argument.default for name, argument in arguments.items() if name != "stack"}
    assert settings == {"_partial_": True} | defaults


@pytest.mark.parametrize("words", VARIANTS)
def test_a_decoder_stays_causal(words, tokens):
    model, changed = new_model(Decoder, words).eval(), tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCAB
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("words", VARIANTS)
def test_scores_do_not_depend_on_where_a_text_starts(words, tokens):
    """Relative encodings give the same output when all positions move by 1000; absolute ones do not."""
    model = new_model(Decoder, words, max_len=2000).eval()
    start = torch.arange(LENGTH)[None]
    with torch.no_grad():
        here, there = model(tokens, start), model(tokens, start + 1000)
    # Dynamic scaling slows down as the last position grows, so it moves with the text's end by design.
    if words.split()[0] in ABSOLUTE or "scaling=dynamic" in words:
        assert not torch.allclose(here, there, atol=1e-5)
    else:
        torch.testing.assert_close(there, here, rtol=0, atol=1e-5)


@pytest.mark.parametrize("words, causal", CASES)
def test_the_order_of_tokens_matters(words, causal, tokens):
    """Two earlier tokens that swap places change the output, unless a stack has neither positions nor a causal mask.

    In float64, since at initialisation they change little.
    """
    model, swapped = new_model(Decoder if causal else Encoder, words).eval().double(), tokens.clone()
    tokens[:, 2:4] = torch.tensor([4, 5])
    swapped[:, 2:4] = torch.tensor([5, 4])
    same = torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], rtol=0, atol=1e-10)
    assert same == (words == "none" and not causal)


@pytest.mark.parametrize("words, causal", CASES)
def test_bias_is_its_rule_elementwise(words, causal):
    encoding = encoding_for(words, causal)
    q_positions, k_positions = torch.tensor([[5, 9, 30], [0, 2, 0]]), torch.arange(40)[None]
    bias = encoding.bias(q_positions, k_positions)
    assert encoding.has_bias == (bias is not None)
    if bias is not None:
        assert bias.shape == (2, HEADS, 3, 40)
        assert bias.dtype == torch.float32
    if not encoding.has_bias_rule:
        return
    expected = torch.stack(
        [
            encoding.bias_rule(torch.tensor(head), query, key)
            for row in q_positions
            for head in range(HEADS)
            for query in row
            for key in k_positions[0]
        ]
    )
    torch.testing.assert_close(bias, expected.view_as(bias), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("words", VARIANTS)
def test_a_query_alone_gets_what_it_gets_among_others(words):
    """Generation asks for the last query only, with keys from a cache."""
    encoding, positions = encoding_for(words), torch.arange(LENGTH)[None]
    x = torch.randn(1, HEADS, LENGTH, 8)
    whole = encoding.rotate(x, encoding.tables(positions), "query")
    last = encoding.rotate(x[:, :, -1:], encoding.tables(positions[:, -1:]), "query")
    torch.testing.assert_close(last, whole[:, :, -1:])
    if encoding.has_bias:
        bias = encoding.bias(positions, positions)
        torch.testing.assert_close(encoding.bias(positions[:, -1:], positions), bias[:, :, -1:])


@pytest.mark.parametrize("words, causal", CASES)
def test_a_bfloat16_model_keeps_float32_biases_and_tells_257_from_256(words, causal):
    encoding = encoding_for(words, causal, max_len=300).bfloat16()
    positions = torch.arange(255, 259)[None]
    x = torch.ones(1, HEADS, 4, 8, dtype=torch.bfloat16)
    for role in ("query", "key"):
        assert encoding.rotate(x, encoding.tables(positions), role).dtype == torch.bfloat16
    embedded = encoding.embed(torch.zeros(1, 4, 24, dtype=torch.bfloat16), positions)
    assert embedded.dtype == torch.bfloat16
    told_apart = [embedded[0], encoding.rotate(x, encoding.tables(positions), "query")[0, 0]]
    if encoding.has_bias:
        bias = encoding.bias(positions[:, -1:] + 1, positions)
        assert bias.dtype == torch.float32
        told_apart.append(bias[0, :, 0].T)
    if words != "none" and not words.startswith("t5"):  # T5 has one bucket for such distances
        assert any(not torch.equal(values[1], values[2]) for values in told_apart)


@pytest.mark.parametrize("words", [words for words in VARIANTS if words.split()[0] not in DECODERS_ONLY])
def test_cross_attention_knows_no_positions(words, tokens, monkeypatch):
    """It calls neither hook: self-attention on both sides accounts for all calls."""
    model = new_model(EncoderDecoder, words).eval()
    hooks = []
    for encoding in (model.encoder.stack.encoding, model.decoder.stack.encoding):
        for name in ("rotate", "bias"):
            hooks.append(Mock(wraps=getattr(encoding, name)))
            monkeypatch.setattr(encoding, name, hooks[-1])
    model(tokens, tokens[:, :5])
    queries_and_keys_of_two_layers, whole_stack = 4, 1
    assert [hook.call_count for hook in hooks] == 2 * [queries_and_keys_of_two_layers, whole_stack]


@pytest.mark.parametrize("words", [words for words in VARIANTS if words.split()[0] not in DECODERS_ONLY])
def test_the_source_is_a_bag_to_cross_attention(words):
    """What the encoder wrote may come in any order."""
    model = new_model(EncoderDecoder, words).eval().decoder
    memory, target = torch.randn(2, 9, 24), torch.randint(0, VOCAB, (2, 5))
    torch.testing.assert_close(model(target, memory=memory.flip(1)), model(target, memory=memory), rtol=0, atol=1e-5)


@pytest.mark.parametrize("words, causal", CASES)
def test_a_few_steps_train_every_parameter(words, causal, tokens):
    model = new_model(Decoder if causal else Encoder, words, dropout=0.1)
    score = torch.nn.Identity() if causal else torch.nn.Linear(24, VOCAB)
    optimizer = torch.optim.Adam([*model.parameters(), *score.parameters()], lr=3e-3)
    losses = []
    for _ in range(20):
        objective, _ = Loss()(score(model(tokens)), tokens.roll(-1, 1))
        optimizer.zero_grad()
        objective.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name
        optimizer.step()
        losses.append(objective.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("words, causal", CASES)
def test_autocast_changes_no_bias(words, causal):
    encoding, positions = encoding_for(words, causal, max_len=600), torch.arange(500, 510)[None]
    plain = encoding.bias(positions, positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = encoding.bias(positions, positions)
    assert (plain is None and cast is None) or torch.equal(plain, cast)
