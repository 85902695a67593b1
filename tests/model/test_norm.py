"""Norm placements: against written-out formulas, the papers' predictions, and in training in every kind of stack."""

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from txtrain.model import Decoder, Encoder, EncoderDecoder, Shape, Stack
from txtrain.model.attention import Attention
from txtrain.model.block import Block
from txtrain.model.embed import Embedding
from txtrain.model.encoding import NoEncoding
from txtrain.model.ffn import FeedForward, GatedFeedForward
from txtrain.model.head import Head
from txtrain.model.norm import (
    DeepNorm,
    NormPlacement,
    ParallelNorm,
    PostNorm,
    PreNorm,
    ReorderedNorm,
    ResiDual,
    SandwichNorm,
)

CONFIGS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "conf/norm").glob("*.yaml"))}
VOCABULARY = 23
IDENTITY = nn.Identity()


def make_stack(*, dim: int = 16, num_layers: int = 2, **rest: Any) -> Stack:
    return Stack(shape=Shape(dim=dim, num_layers=num_layers, num_heads=2), causal=True, max_len=8, **rest)


def make_norm(option: str, **overrides: Any) -> Callable[..., NormPlacement]:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONFIGS[option]), overrides), _convert_="all")


def make_model(kind: type[nn.Module], norm: Callable[..., NormPlacement], **shape: Any) -> nn.Module:
    sizes = {"dim": 16, "num_layers": 2, "num_heads": 2} | shape
    head = {} if kind is Encoder else {"head": Head}
    return kind(
        vocab_size=VOCABULARY,
        max_len=8,
        shape=Shape(**sizes),
        embedding=Embedding,
        encoding=NoEncoding,
        norm=norm,
        attention=Attention,
        ffn=FeedForward,
        **head,
    )


def randomise_norms(module: nn.Module) -> None:
    """Norms that start as the identity's scale would hide a norm that is missing, doubled or swapped."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm | nn.RMSNorm):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            if getattr(part, "bias", None) is not None:
                nn.init.normal_(part.bias)


def standardise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """A LayerNorm without bias, written out."""
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def scale_to_one(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """An RMSNorm, written out."""
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("cross", [False, True], ids=["2 sublayers", "3 sublayers"])
@pytest.mark.parametrize("layer", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("option", ["pre", "post", "sandwich", "reordered", "deepnorm", "residual", "parallel"])
def test_formula(option: str, layer: str, cross: bool) -> None:
    torch.manual_seed(0)
    stack = make_stack(num_layers=1, cross=cross, other_layers=1 if cross else 0)
    placement = make_norm(option, layer=layer)(stack=stack).double()
    wiring = placement.wiring().double()
    randomise_norms(placement)
    randomise_norms(wiring)
    matrices = [torch.randn(16, 16, dtype=torch.float64) for _ in range(stack.sublayers)]
    sublayers = [lambda h, outer=IDENTITY, m=m: outer(torch.tanh(h @ m)) for m in matrices]
    x = torch.randn(2, 5, 16, dtype=torch.float64)

    normalise = standardise if layer == "layernorm" else scale_to_one
    weights = list(wiring.parameters())

    def n(index: int, h: Tensor) -> Tensor:
        return normalise(h, weights[index], 1e-5)

    expected, free = x, x
    for i, m in enumerate(matrices):

        def f(h: Tensor, m: Tensor = m) -> Tensor:
            return torch.tanh(h @ m)

        match option:
            case "pre":
                expected = expected + f(n(i, expected))
            case "post":
                expected = n(i, expected + f(expected))
            case "sandwich":
                expected = expected + n(i + len(sublayers), f(n(i, expected)))
            case "reordered":
                expected = expected + n(i, f(expected))
            case "deepnorm":  # one layer: 3^¼ with cross-attention, 2^¼ without
                expected = n(i, (3**0.25 if cross else 2**0.25) * expected + f(expected))
            case "residual":
                branch = f(expected)
                expected, free = n(i, expected + branch), free + branch
            case "parallel":
                expected = expected + f(n(0, x))
    if option == "residual":
        expected = expected + normalise(free, placement.final.weight, 1e-5)
    elif option in ("pre", "sandwich", "reordered", "parallel"):
        expected = normalise(expected, placement.final.weight, 1e-5)

    output = placement.close(wiring(placement.open(x), sublayers))
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "stack, alpha, beta",
    [
        # Table of https://arxiv.org/abs/2203.00555 for N encoder and M decoder layers, with the numbers put in.
        ({"causal": False, "layers": 12}, 24**0.25, 96**-0.25),
        ({"causal": True, "layers": 18}, 36**0.25, 144**-0.25),
        ({"causal": False, "layers": 6, "other_layers": 6}, 1.41794, 0.49699),  # 0.81 (N⁴M)^1/16, 0.87 (N⁴M)^-1/16
        ({"causal": False, "layers": 18, "other_layers": 2}, 1.74228, 0.40447),
        ({"causal": True, "layers": 6, "other_layers": 6, "cross": True}, 18**0.25, 72**-0.25),
        ({"causal": True, "layers": 2, "other_layers": 18, "cross": True}, 6**0.25, 24**-0.25),
    ],
)
def test_deepnorm_constants(stack: dict[str, Any], alpha: float, beta: float) -> None:
    shape = Shape(dim=16, num_layers=stack.pop("layers"), num_heads=2)
    norm = DeepNorm(stack=Stack(shape=shape, max_len=8, **stack))
    assert (norm.alpha, norm.beta) == pytest.approx((alpha, beta), rel=1e-5)


@pytest.mark.parametrize("ffn", [FeedForward, GatedFeedForward])
def test_deepnorm_initialises_each_projection_with_its_gain(ffn: type[nn.Module]) -> None:
    model = make_model(EncoderDecoder, DeepNorm, dim=64, num_layers=4, num_heads=4)
    for stack in (model.encoder.stack, model.decoder.stack):
        for name, linear in stack.named_modules():
            if isinstance(linear, nn.Linear):
                gain = 1.0 if name.endswith(("q_proj", "k_proj", "gate_proj")) else stack.norm.beta
                xavier = (2 / sum(linear.weight.shape)) ** 0.5
                assert linear.weight.std().item() == pytest.approx(gain * xavier, rel=0.05), name


def test_branches_that_no_norm_bounds_start_smaller() -> None:
    """GPT-2's rule: the projections that write to the stream by 1 / √(number of branches)."""
    for placement, gain in [(PreNorm, 6**-0.5), (ParallelNorm, 6**-0.5), (PostNorm, 1.0), (SandwichNorm, 1.0)]:
        model = make_model(Decoder, placement, dim=64, num_layers=3)
        for name, linear in model.stack.named_modules():
            if isinstance(linear, nn.Linear):
                expected = 0.02 * (gain if name.endswith(("o_proj", "down_proj")) else 1.0)
                assert linear.weight.std().item() == pytest.approx(expected, rel=0.05), (placement, name)


def stream_variances(norm: Callable[..., NormPlacement], *, layers: int, weight_scale: float) -> list[float]:
    """Mean square of what leaves each layer, on random inputs of mean square 1."""
    torch.manual_seed(0)
    model = make_model(Encoder, norm, dim=64, num_layers=layers)
    squares: list[float] = []
    for block in model.stack.blocks:
        for name in ("attention.o_proj", "ffn.down_proj"):
            block.get_submodule(name).weight.data.mul_(weight_scale)
        block.register_forward_hook(
            lambda _, args, stream: squares.append(
                (stream[-1] if isinstance(stream, tuple) else stream).square().mean().item()
            )
        )
    with torch.no_grad():
        model.stack(torch.randn(2, 8, 64), torch.arange(8)[None])
    return squares


def test_variance_over_depth_is_what_the_papers_say() -> None:
    """With branches 1000 times as large, it grows without bound in pre-norm, parallel and ResiDual's free stream, by
    one a branch in Peri-LN and OLMo 2, and is one after every post-norm."""
    scale, layers = 1000.0, 8
    for placement in (PreNorm, ParallelNorm, ResiDual):
        variances = stream_variances(placement, layers=layers, weight_scale=scale)
        assert all(later > earlier for earlier, later in pairwise(variances)), placement
        assert variances[-1] > 100, placement
    for placement in (SandwichNorm, ReorderedNorm):
        variances = stream_variances(placement, layers=layers, weight_scale=scale)
        added = [later - earlier for earlier, later in pairwise(variances)]
        assert all(0.5 < step < 6 for step in added), placement  # two branches of mean square 1, hardly correlated
    for placement in (PostNorm, DeepNorm):
        variances = stream_variances(placement, layers=layers, weight_scale=scale)
        assert variances == pytest.approx([1.0] * layers, rel=1e-3), placement


def test_first_update_does_not_grow_with_depth_under_deepnorm() -> None:
    """DeepNorm's claim: a step of gradient descent on the projections moves 4 and 64 layers' output by as much."""

    def change(norm: Callable[..., NormPlacement], layers: int) -> float:
        torch.manual_seed(0)
        model = make_model(Encoder, norm, dim=32, num_layers=layers)
        x, direction, positions = torch.randn(4, 8, 32), torch.randn(4, 8, 32), torch.arange(8)[None]
        before = model.stack(x, positions)
        (before * direction).sum(-1).mean().backward()
        with torch.no_grad():
            for linear in (part for part in model.stack.modules() if isinstance(part, nn.Linear)):
                linear.weight -= 0.01 * linear.weight.grad
            return (model.stack(x, positions) - before).square().mean().sqrt().item()

    assert change(DeepNorm, 64) == pytest.approx(change(DeepNorm, 4), rel=0.2)
    assert change(PostNorm, 64) > 10 * change(PostNorm, 4)


@pytest.mark.parametrize("kind", [Decoder, EncoderDecoder])
def test_no_two_placements_agree(kind: type[nn.Module]) -> None:
    """With the same weights, all pairs give different outputs, so that no option can be another under a wrong name."""
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (2, 8))
    inputs = (tokens, tokens.flip(1)) if kind is EncoderDecoder else (tokens,)
    variants = {option: make_norm(option) for option in CONFIGS} | {"own norms": make_norm("parallel", shared=False)}
    outputs: dict[str, Tensor] = {}
    for option, norm in variants.items():
        model = make_model(kind, norm)
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            in_norm = ".norm." in name
            generator = torch.Generator().manual_seed(number if in_norm else sum(name.encode()))
            with torch.no_grad():
                parameter.normal_(mean=1.0 if in_norm else 0.0, std=0.3, generator=generator)
        outputs[option] = model(*inputs).detach()
    for one, other in combinations(outputs, 2):
        assert (outputs[one] - outputs[other]).abs().max() > 0.01, (one, other)


@pytest.mark.parametrize("layer", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("kind", [Encoder, Decoder, EncoderDecoder])
@pytest.mark.parametrize("option", CONFIGS)
def test_trains(option: str, kind: type[nn.Module], layer: str) -> None:
    """20 steps lower the loss, with a finite gradient for every parameter at the first."""
    torch.manual_seed(0)
    model = make_model(kind, make_norm(option, layer=layer))
    readout = nn.Linear(16, VOCABULARY) if kind is Encoder else nn.Identity()
    tokens = torch.randint(VOCABULARY, (4, 8))
    inputs = (tokens, tokens) if kind is EncoderDecoder else (tokens,)
    parameters = [*model.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for step in range(20):
        loss = nn.functional.cross_entropy(readout(model(*inputs)).flatten(0, 1), tokens.roll(-1, 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().max() > 0, name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("option", CONFIGS)
def test_bfloat16_autocast_and_whole(option: str) -> None:
    """No warning about dtypes, and outputs near float32's."""
    torch.manual_seed(0)
    model = make_model(Decoder, make_norm(option))
    tokens = torch.randint(VOCABULARY, (2, 8))
    exact = model(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(tokens)
    mixed.float().sum().backward()
    whole = model.bfloat16()(tokens)
    assert whole.dtype == torch.bfloat16
    for output in (mixed, whole):
        assert (output.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("option", CONFIGS)
def test_layer_norm_has_a_bias_only_when_asked(option: str) -> None:
    def biases(**overrides: Any) -> list[str]:
        model = make_model(Decoder, make_norm(option, **overrides))
        return [name for name, _ in model.named_parameters() if "bias" in name]

    assert not biases(layer="layernorm")
    assert biases(layer="layernorm", bias=True)
    with pytest.raises(ValueError, match=r"set norm\.layer=layernorm$"):
        biases(layer="rmsnorm", bias=True)


def test_eps_is_used() -> None:
    placement = PreNorm(stack=make_stack(), eps=3.0)
    x = torch.full((1, 1, 16), 1.0)
    torch.testing.assert_close(placement.close(x), x / 2)  # 1 / √(1 + 3)


@pytest.mark.parametrize("dropped", [{"dropout": 0.3}, {"drop_path": 0.5}, {"dropout": 0.3, "drop_path": 0.3}], ids=str)
@pytest.mark.parametrize("option", CONFIGS)
def test_branches_are_as_large_in_training_as_in_evaluation(option: str, dropped: dict[str, float]) -> None:
    """Dropout keeps the mean of what each branch adds to the stream, wherever the norms stand."""
    torch.manual_seed(0)
    stack = Stack(shape=Shape(dim=16, num_layers=2, num_heads=2, **dropped), causal=True, max_len=8)
    placement = make_norm(option)(stack=stack)
    block = Block(stack=stack, norm=placement, attention=Attention, ffn=FeedForward, layer=1)
    x, branch = torch.randn(1, 1, 16), torch.randn(16)

    def sums(branch: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """The stream after attention's branch, and what the first norm after it reads."""
        block.attention.forward = lambda x, *_, **__: branch.expand_as(x)
        block.ffn.forward = torch.zeros_like
        read: list[Tensor] = []
        for norm in (part for part in block.norm.modules() if isinstance(part, nn.LayerNorm | nn.RMSNorm)):
            norm.register_forward_pre_hook(lambda _, args: read.append(args[0]))
        with torch.no_grad():
            stream = block(placement.open(x.expand(rows, 1, 16)), None)
        return stream[-1] if isinstance(stream, tuple) else stream, read[0]

    without = sums(torch.zeros(16), 1)
    on_path = not torch.allclose(without[0], x)  # a norm on the path itself, as in post-norm, reads the sum
    block.eval()
    evaluated = (sums(branch, 1)[on_path] - without[on_path])[0, 0]
    block.train()
    trained = (sums(branch, 20000)[on_path] - without[on_path]).mean((0, 1))
    assert ((trained @ evaluated) / (evaluated @ evaluated)).item() == pytest.approx(1.0, abs=0.02)
