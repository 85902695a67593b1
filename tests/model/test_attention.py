"""The attention module: which kernels it really runs, norms, precision, dropout, cross-attention, compilation."""

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from txtrain.model import Decoder, Encoder, EncoderDecoder, Shape, Stack
from txtrain.model.attention import Attention, Context
from txtrain.model.embed import Embedding
from txtrain.model.encoding import T5, Alibi, Fire, NoEncoding, Rope
from txtrain.model.explain import explain_attention
from txtrain.model.ffn import FeedForward
from txtrain.model.head import Head
from txtrain.model.kernels import Choice, Flex, Scores
from txtrain.model.mask import Mask
from txtrain.model.norm import PreNorm

B, H, KV, T, WIDTH = 2, 4, 2, 16, 16
HALF = torch.bfloat16
UNFUSED = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
# PyTorch's own compiler warns.
COMPILED = pytest.mark.filterwarnings("ignore")


def new_stack(causal: bool = True, dropout: float = 0.0, **shape: int) -> Stack:
    sizes = {"dim": H * WIDTH, "num_layers": 1, "num_heads": H, "num_kv_heads": KV} | shape
    return Stack(shape=Shape(**sizes, dropout=dropout), causal=causal, max_len=T)


def documents() -> Tensor:
    return torch.stack([torch.arange(T) // 9, torch.arange(T) // 5])


def ops_of(model: nn.Module, tokens: Tensor, **masks: Tensor) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        model(tokens, **masks).sum().backward()
    return {event.key for event in trace.key_averages()}


def new_model(
    kind: type = Decoder, *, dropout: float = 0.0, encoding: type = NoEncoding, **attention: object
) -> nn.Module:
    torch.manual_seed(0)
    return kind(
        vocab_size=11,
        max_len=T,
        shape=Shape(dim=H * WIDTH, num_layers=2, num_heads=H, num_kv_heads=KV, dropout=dropout),
        embedding=Embedding,
        encoding=encoding,
        norm=PreNorm,
        attention=lambda **given: Attention(**given, **attention),
        ffn=FeedForward,
        **({} if kind is Encoder else {"head": Head}),
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"window": 5},
        {"encoding": Alibi},
        {"encoding": T5},
        {"encoding": Fire},
        {"dropout": 0.1},
        {"encoding": Rope, "dropout": 0.1},
    ],
    ids=str,
)
def test_pytorch_runs_the_variant_that_is_told_on_cpu(arguments: dict) -> None:
    """The real calls, with grouped heads, by the profiler."""
    model, tokens = new_model(**arguments), torch.randint(0, 11, (B, T))
    ops = ops_of(model, tokens, documents=documents())
    fast = "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in ops
    slow = "aten::_scaled_dot_product_attention_math" in ops
    told = explain_attention(model, "cpu", documents=True)
    assert (fast, slow) == (told.startswith("sdpa (flash)"), told.startswith("sdpa (math)"))
    assert fast != slow


def test_explanation() -> None:
    assert explain_attention(new_model(), "cpu") == "sdpa (flash): no bias, and no mask but causality"
    assert explain_attention(new_model(window=5, encoding=Alibi), "cuda", HALF, documents=True) == (
        "flex (compiled): a fixed bias and a window of 5 and separate documents inside the fast kernel"
    )
    assert explain_attention(new_model(encoding=T5), "cuda", HALF) == (
        "sdpa (efficient): a learned bias added to the scores; "
        "the gradient of a learned bias in FlexAttention is not verified on GPUs"
    )
    assert explain_attention(new_model(window=5, dropout=0.1), "cuda", HALF) == (
        "sdpa (efficient): a window of 5 added to the scores; FlexAttention has no dropout (model.dropout=0.1)"
    )
    assert explain_attention(new_model(EncoderDecoder, encoding=Alibi), "cpu", padding=True) == (
        "encoder: sdpa (flash): a fixed bias and padding added to the scores; "
        "decoder: sdpa (flash): a fixed bias added to the scores; "
        "cross-attention: sdpa (flash): padding added to the scores"
    )


def test_frozen_bias_is_not_learned() -> None:
    model = new_model(encoding=T5).requires_grad_(False)
    assert explain_attention(model, "cuda", HALF) == "flex (compiled): a fixed bias inside the fast kernel"


def test_window_as_long_as_the_sequence_costs_nothing() -> None:
    assert explain_attention(new_model(window=T), "cuda", HALF).startswith("sdpa (flash)")
    model, tokens = new_model(window=T), torch.randint(0, 11, (B, T))
    assert "aten::where" not in ops_of(model, tokens)


def test_mixed_precision_takes_masks_and_biases() -> None:
    tokens = torch.randint(0, 11, (B, T))
    for soft_cap, encoding in product((None, 5.0), (Alibi, T5, Rope)):
        model = new_model(encoding=encoding, window=5, soft_cap=soft_cap, qk_norm="head")
        exact = model(tokens, documents=documents())
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(tokens, documents=documents())
        torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.05)
        rough.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_a_sequence_that_is_all_padding_is_harmless(soft_cap: float | None, dropout: float) -> None:
    model = new_model(Encoder, soft_cap=soft_cap, dropout=dropout, encoding=T5)
    real = torch.ones(B, T, dtype=torch.bool)
    real[1] = False
    out = model(torch.randint(0, 11, (B, T)), padding=real)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_dropout_is_off_in_evaluation() -> None:
    model, tokens = new_model(dropout=0.5), torch.randint(0, 11, (B, T))
    assert torch.equal(model.eval()(tokens), model.eval()(tokens))
    assert not torch.equal(model.train()(tokens), model.train()(tokens))


@pytest.mark.parametrize("qk_norm", ["head", "all"])
def test_qk_norm_bounds_scores(qk_norm: str) -> None:
    """Scaling x does not change the mixing weights; the norm spans one head, or all of them."""
    torch.manual_seed(0)
    stack = new_stack()
    attention = Attention(stack=stack, qk_norm=qk_norm)
    nn.init.normal_(attention.q_norm.weight)
    nn.init.normal_(attention.k_norm.weight)
    x, positions = torch.randn(B, T, stack.dim), torch.arange(T)[None]
    scores = Scores(
        mask=Mask(causal=True), encoding=NoEncoding(stack=stack), q_positions=positions, k_positions=positions
    )
    context = Context.build([attention], scores, x)
    torch.testing.assert_close(attention(100 * x, context), 100 * attention(x, context), rtol=0, atol=1e-2)

    q, k = (linear(x).double() for linear in (attention.q_proj, attention.k_proj))
    for name, y in (("q_norm", q), ("k_norm", k)):
        norm = getattr(attention, name)
        heads = y.unflatten(-1, (-1, WIDTH)) if qk_norm == "head" else y.unflatten(-1, (1, -1))
        expected = heads / (heads.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
        torch.testing.assert_close(norm(y.float()).double(), expected.flatten(-2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoding", [Rope, Alibi, T5])
def test_encoding_and_window_are_not_in_cross_attention(encoding: type) -> None:
    """There a permutation of the source tokens changes nothing, whatever the positions would say."""
    model = new_model(EncoderDecoder, encoding=encoding, window=3)
    memory, order = torch.randn(B, T, H * WIDTH), torch.randperm(T)
    tokens = torch.randint(0, 11, (B, 5))
    expected = model.decoder(tokens, memory=memory)
    torch.testing.assert_close(model.decoder(tokens, memory=memory[:, order]), expected, rtol=0, atol=1e-5)


def test_projections_bear_the_names_that_adapters_target() -> None:
    names = [name for name, _ in Attention(stack=new_stack(), qk_norm="head").named_children()]
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"]


@pytest.mark.parametrize(
    "arguments, words", [({"soft_cap": 0.0}, "attention.soft_cap"), ({"window": 0}, "attention.window")]
)
def test_impossible_values_are_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Attention(stack=new_stack(), **arguments)


@COMPILED
@pytest.mark.parametrize(
    "encoding, attention", [(NoEncoding, {}), (Rope, {"window": 5}), (T5, {"soft_cap": 5.0})], ids=str
)
def test_compiled_blocks_share_one_graph(encoding: type, attention: dict) -> None:
    """No graph breaks, and no compilation for a second layer, step or mask."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        graphs.append(graph)
        return graph.forward

    model, tokens = new_model(encoding=encoding, **attention), torch.randint(0, 11, (B, T))
    expected = model(tokens, documents=documents())
    for block in model.stack.blocks:
        block.compile(backend=backend, fullgraph=True)
    for shift in range(3):
        out = model(tokens, documents=documents() + shift)
    torch.testing.assert_close(out, expected)
    assert len(graphs) == 1


@COMPILED
@UNFUSED
@torch.no_grad()
def test_compiled_blocks_share_one_graph_with_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        graphs.append(graph)
        return graph.forward

    model, tokens = new_model(encoding=Alibi, window=5, soft_cap=5.0), torch.randint(0, 11, (B, T))
    expected = model(tokens, documents=documents())
    flex = Choice(Flex(compiled=False), "", "")
    monkeypatch.setattr("txtrain.model.attention.choose_kernel", lambda demands: flex)
    for block in model.stack.blocks:
        block.compile(backend=backend, fullgraph=True)
    for _ in range(3):
        out = model(tokens, documents=documents())
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    assert len(graphs) == 1


@UNFUSED
@torch.no_grad()
def test_flex_takes_mixed_precision() -> None:
    """Under autocast rotated queries are float32 and values bfloat16."""
    stack = new_stack()
    attention = Attention(stack=stack, window=5)
    x, positions = torch.randn(B, T, stack.dim), torch.arange(T)[None]
    scores = Scores(mask=Mask(causal=True), encoding=Rope(stack=stack), q_positions=positions, k_positions=positions)
    context = Context.build([attention], scores, x)
    flex = Flex(compiled=False)
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(
            x,
            Context(
                kernel=flex,
                scores=scores,
                prepared=flex.prepare(scores, {5}, x.dtype),
                encoding=context.encoding,
                tables=context.tables,
            ),
        )
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), attention(x, context), rtol=0, atol=0.02)
