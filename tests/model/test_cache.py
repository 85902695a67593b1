"""The cache: what a decoder computes of new tokens alone is what it computes of all of them."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.pairwise import pairwise
from txtrain.model import Cache, Decoder, EncoderDecoder, Shape
from txtrain.model.embed import Embedding
from txtrain.model.ffn import GatedFeedForward
from txtrain.model.head import Head
from txtrain.model.lora import LoRA

CONF = Path(__file__).parents[2] / "conf"
VOCAB, LENGTH, LAYERS = 30, 12, 2
CHUNKS = [(0, 6), (6, 7), (7, 10), (10, 11), (11, 12)]
PADDED = torch.tensor([0, 5, 2])  # in front of each row

# Sizes that take effect within so few tokens.
VARIANTS = {
    "encoding": [
        "kerple variant=power",
        "rope layout=interleaved fraction=0.5",
        "rope scaling=linear factor=2",
        "rope scaling=dynamic factor=2 original_len=8",
        "rope scaling=yarn factor=2 original_len=8",
        "rope scaling=llama3 factor=2 original_len=8",
    ],
    "norm": ["parallel shared=false", "pre layer=layernorm bias=true"],
    "attention": ["sliding window=3", "full soft_cap=2 qk_norm=head", "full qk_norm=all bias=true window=[3,null]"],
}


def options(axis: str) -> list[str]:
    return sorted(file.stem for file in (CONF / axis).glob("*.yaml")) + VARIANTS[axis]


def part(axis: str, words: str) -> object:
    name, *overrides = words.split()
    config = OmegaConf.merge(OmegaConf.load(CONF / axis / f"{name}.yaml"), OmegaConf.from_dotlist(overrides))
    return instantiate(config, _convert_="all")


def new_model(
    kind: type = Decoder, *, encoding: str = "rope", norm: str = "pre", attention: str = "full", kv_heads: int = 2
) -> nn.Module:
    """With large weights, so that attention is far from even and every key counts."""
    torch.manual_seed(0)
    model = kind(
        vocab_size=VOCAB,
        max_len=LENGTH,
        shape=Shape(dim=24, num_layers=LAYERS, num_heads=4, num_kv_heads=kv_heads, head_dim=8),
        embedding=Embedding,
        head=Head,
        ffn=GatedFeedForward,
        encoding=part("encoding", encoding),
        norm=part("norm", norm),
        attention=part("attention", attention),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model.eval().double()


def new_tokens(rows: int = 3) -> Tensor:
    return torch.randint(0, VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def continued(model: nn.Module, tokens: Tensor, cache: Cache, **first: Tensor) -> Tensor:
    """Logits of all tokens, one cached pass for each chunk; the first one also gets `first`."""
    return torch.cat([model(tokens[:, a:b], cache=cache, **(first if a == 0 else {})) for a, b in CHUNKS], dim=1)


def growing(model: nn.Module, tokens: Tensor, **rest: Tensor) -> Tensor:
    """The same without a cache: each chunk's logits are those of the pass that ends with it."""
    return torch.cat([model(tokens[:, :b], **rest)[:, a:b] for a, b in CHUNKS], dim=1)


ROWS = pairwise({axis: options(axis) for axis in VARIANTS} | {"kv_heads": [1, 2, 4]})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ", ".join(map(str, row.values())))
@torch.inference_mode()
def test_cached_logits_are_the_uncached(row: dict) -> None:
    """A left-padded batch, in chunks, against each row by itself, not padded and not cached."""
    model, tokens = new_model(**row), new_tokens()
    positions = (torch.arange(LENGTH) - PADDED[:, None]).clamp(min=0)
    padding = torch.arange(LENGTH) >= PADDED[:, None]
    cache = model.new_cache(batch=len(tokens), capacity=4)
    for a, b in CHUNKS:
        logits = model(tokens[:, a:b], positions[:, a:b], padding=padding[:, a:b], cache=cache)
        for i, skipped in enumerate(PADDED.tolist()):
            alone = model(tokens[i : i + 1, skipped:b])[0, max(a - skipped, 0) :]
            # The bias of fire is a network in float32.
            close = 1e-4 if row["encoding"] == "fire" else 1e-9
            torch.testing.assert_close(logits[i, max(skipped - a, 0) :], alone, rtol=0, atol=close)
    assert cache.length == LENGTH


@pytest.mark.parametrize("encoding", options("encoding"))
@torch.inference_mode()
def test_positions_go_on_by_themselves(encoding: str) -> None:
    """From the latest of each row; tokens that nothing is said of are real."""
    model, tokens = new_model(encoding=encoding), new_tokens()
    atol = 1e-4 if encoding == "fire" else 1e-9
    logits = continued(model, tokens, model.new_cache(batch=3))
    torch.testing.assert_close(logits, growing(model, tokens), rtol=0, atol=atol)
    positions = (torch.arange(LENGTH) - PADDED[:, None]).clamp(min=0)
    padding = torch.arange(LENGTH) >= PADDED[:, None]
    first = {"positions": positions[:, :6], "padding": padding[:, :6]}
    logits = continued(model, tokens, model.new_cache(batch=3), **first)
    expected = [model(tokens[:, :b], positions[:, :b], padding=padding[:, :b])[:, a:b] for a, b in CHUNKS]
    torch.testing.assert_close(logits[padding], torch.cat(expected, dim=1)[padding], rtol=0, atol=atol)


@pytest.mark.parametrize("norm", options("norm"))
@pytest.mark.parametrize("encoding", ["t5", "rope scaling=dynamic factor=2 original_len=8"])
@torch.inference_mode()
def test_encoder_decoder_reads_its_memory_once(encoding: str, norm: str) -> None:
    model, target, source = new_model(EncoderDecoder, encoding=encoding, norm=norm), new_tokens(), new_tokens() // 2
    source_padding = torch.arange(LENGTH) < torch.tensor([[12], [4], [9]])
    calls = []
    for block in model.decoder.stack.blocks:
        block.cross_attention.k_proj.register_forward_hook(lambda *_: calls.append(1))
    given = {"memory": model.encode(source, source_padding), "memory_padding": source_padding}
    logits = continued(model.decoder, target, model.new_cache(batch=3), **given)
    assert len(calls) == LAYERS
    expected = [model(source, target[:, :b], source_padding)[:, a:b] for a, b in CHUNKS]
    torch.testing.assert_close(logits, torch.cat(expected, dim=1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("encoding", ["rope", "alibi", "rope scaling=dynamic factor=2 original_len=8"])
@pytest.mark.parametrize("chosen", [[2, 0, 0], [1], [0, 1, 1, 2, 2]], ids=str)
@torch.inference_mode()
def test_selected_rows_go_on_as_what_they_were(encoding: str, chosen: list[int]) -> None:
    """As in beam search: rows with the pasts of others, padding and memory too."""
    model, tokens, source, rows = new_model(EncoderDecoder, encoding=encoding), new_tokens(), new_tokens() // 2, chosen
    source_padding = torch.arange(LENGTH) < torch.tensor([[12], [4], [9]])
    padding = torch.arange(6) >= PADDED[:, None]
    first = {"positions": (torch.arange(6) - PADDED[:, None]).clamp(min=0), "padding": padding}
    memory = model.encode(source, source_padding)
    cache = model.new_cache(batch=3, capacity=8)
    model.decoder(tokens[:, :6], memory=memory, memory_padding=source_padding, cache=cache, **first)
    cache.select(torch.tensor(rows))
    fresh = model.new_cache(batch=len(rows), capacity=8)
    chosen_first = {name: value[rows] for name, value in first.items()}
    chosen_memory = {"memory": memory[rows], "memory_padding": source_padding[rows]}
    model.decoder(tokens[rows, :6], cache=fresh, **chosen_memory, **chosen_first)
    new = new_tokens(len(rows)).flip(1)
    for a, b in CHUNKS[1:]:
        logits, expected = (model.decoder(new[:, a:b], cache=each) for each in (cache, fresh))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert (cache.batch, cache.length) == (len(rows), LENGTH)


@torch.inference_mode()
def test_one_prompt_serves_many_rows() -> None:
    model, tokens = new_model(encoding="alibi"), new_tokens()
    tokens[:, :6] = tokens[:1, :6]
    cache = model.new_cache(batch=1)
    model(tokens[:1, :6], cache=cache)
    cache.select(torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(model(tokens[:, 6:], cache=cache), model(tokens)[:, 6:], rtol=0, atol=1e-9)


@torch.inference_mode()
def test_a_cache_that_is_too_small_grows() -> None:
    model, tokens = new_model(encoding="alibi", attention="sliding window=3"), new_tokens()
    small, large = (continued(model, tokens, model.new_cache(batch=3, capacity=size)) for size in (1, 64))
    assert torch.equal(small, large)


@torch.inference_mode()
def test_a_pass_that_fails_leaves_the_cache_as_it_was() -> None:
    model, tokens = new_model(encoding="alibi"), new_tokens()
    cache = model.new_cache(batch=3)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    for a, b in CHUNKS:
        hook = model.stack.blocks[-1].register_forward_pre_hook(fail)
        padding = torch.zeros(3, b - a, dtype=torch.bool)
        with pytest.raises(RuntimeError, match="out of memory"):
            model(tokens[:, a:b] // 2, torch.full((3, b - a), 9), padding=padding, cache=cache)
        hook.remove()
        assert cache.length == a
        torch.testing.assert_close(model(tokens[:, a:b], cache=cache), model(tokens)[:, a:b], rtol=0, atol=1e-9)


@torch.no_grad()
def test_adapters_write_the_cache() -> None:
    model, tokens = new_model(), new_tokens()
    plain = model(tokens)
    LoRA(rank=2).apply(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    model.double()
    logits = continued(model, tokens, model.new_cache(batch=3))
    torch.testing.assert_close(logits, model(tokens), rtol=0, atol=1e-9)
    assert not torch.allclose(logits, plain, atol=0.1)


@pytest.mark.parametrize("attention", options("attention"))
@torch.inference_mode()
def test_mixed_precision(attention: str) -> None:
    """As far from the uncached pass as bfloat16 is from float32; values are held in bfloat16."""
    model, tokens = new_model(attention=attention).float(), new_tokens()
    exact, cache = model(tokens), model.new_cache(batch=3)
    with torch.autocast("cpu", torch.bfloat16):
        uncached, cached = model(tokens), continued(model, tokens, cache)
    held = cache.layers[0].own
    assert held.values.data.dtype == torch.bfloat16
    assert (cached - uncached).abs().mean() < 0.5 * (uncached - exact).abs().mean() + 1e-3


@torch.no_grad()
def test_what_is_written_in_inference_mode_goes_on_without() -> None:
    model, tokens = new_model(encoding="alibi"), new_tokens()
    cache = model.new_cache(batch=3)
    with torch.inference_mode():
        model(tokens[:, :6], cache=cache)
        cache.select(torch.tensor([0, 1, 2]))
    torch.testing.assert_close(model(tokens[:, 6:], cache=cache), model(tokens)[:, 6:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("encoding", ["rope", "rope scaling=dynamic factor=2 original_len=12", "t5"])
@torch.inference_mode()
def test_a_token_costs_one_token(encoding: str) -> None:
    """Products of matrices are those of the new token, whatever is held; what was never written is not read."""
    model, tokens = new_model(encoding=encoding), new_tokens(1)
    with FlopCounterMode(display=False) as whole:
        expected = model(tokens)
    cache = model.new_cache(batch=1, capacity=1000)
    for i in range(LENGTH):
        with FlopCounterMode(display=False) as step:
            logits = model(tokens[:, i : i + 1], cache=cache)
        counts = [flops.get_flop_counts()["Global"][torch.ops.aten.mm] for flops in (step, whole)]
        assert counts[0] * LENGTH == counts[1]
        for layer in cache.layers:
            layer.own.keys.data[:, :, i + 1 :] = layer.own.values.data[:, :, i + 1 :] = torch.nan
        torch.testing.assert_close(logits, expected[:, i : i + 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("encoding", ["rope", "alibi"])
@pytest.mark.parametrize("more", ["", " soft_cap=2"])
@torch.inference_mode()
def test_what_is_behind_the_window_is_not_read(more: str, encoding: str) -> None:
    """Not even to be masked: that would be NaN."""
    model, tokens = new_model(encoding=encoding, attention="sliding window=3" + more), new_tokens()
    expected, cache = model(tokens), model.new_cache(batch=3)
    for a, b in CHUNKS:
        behind = max(a - 2, 0)
        for layer in cache.layers if a else []:
            layer.own.keys.data[:, :, :behind] = layer.own.values.data[:, :, :behind] = torch.nan
        torch.testing.assert_close(model(tokens[:, a:b], cache=cache), expected[:, a:b], rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_cached_pass_is_not_compiled() -> None:
    model, tokens = new_model(), new_tokens()
    expected, graphs = model(tokens), []
    for block in model.stack.blocks:
        block.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    torch.testing.assert_close(continued(model, tokens, model.new_cache(batch=3)), expected, rtol=0, atol=1e-9)
    assert not graphs


def test_impossible_uses_are_refused() -> None:
    model, tokens = new_model(), new_tokens()
    with pytest.raises(ValueError, match="inference_mode"):
        model(tokens, cache=model.new_cache(batch=3))
    with torch.no_grad(), pytest.raises(ValueError, match=r"new_cache\(batch=3\)"):
        model(tokens, cache=model.new_cache(batch=2))
    with pytest.raises(ValueError, match="capacity=0"):
        model.new_cache(batch=1, capacity=0)
