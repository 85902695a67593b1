"""Adapters in training: what freezes and what learns, recomputed, compiled, and in bfloat16."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.model.adapted import KINDS, VARIANTS, inputs, make_model, randomise_adapters
from txtrain.model.block import Block
from txtrain.model.lora import DoRALinear, LoRA, LoRALinear, parameter_counts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_from_scratch_only_targeted_layers_freeze(kind: type[nn.Module], variant: str) -> None:
    model = make_model(kind)
    LoRA(rank=2, variant=variant, targets=["all"]).apply(model)
    for name, parameter in model.named_parameters():
        frozen = name.endswith(("proj.weight", "proj.bias"))
        assert parameter.requires_grad != frozen, name
    model(*inputs(kind)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_adapting_a_trained_model_trains_adapters_only(variant: str) -> None:
    model = make_model()
    LoRA(rank=2, variant=variant, targets="q_proj").apply(model, adapt_only=True)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parts = {"lora_A", "lora_B"} | ({"lora_magnitude"} if variant == "dora" else set())
    assert trainable == {f"stack.blocks.{layer}.attention.q_proj.{part}" for layer in range(2) for part in parts}
    everything, trained = parameter_counts(model)
    assert trained == 2 * (2 * 2 * 16 + (16 if variant == "dora" else 0))
    assert everything == sum(parameter.numel() for parameter in make_model().parameters()) + trained


@pytest.mark.parametrize("adapt_only", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_lowers_the_loss_and_moves_trainable_parameters_only(variant: str, adapt_only: bool) -> None:
    model = make_model()
    LoRA(rank=4, variant=variant).apply(model, adapt_only=adapt_only)
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    (tokens,) = inputs()
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.99 * losses[0]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_recomputing_blocks_gives_the_same_gradients(variant: str) -> None:
    """Though with a frozen embedding no input of a block needs a gradient."""

    def gradients(recompute: bool) -> list[Tensor]:
        model = make_model(dropout=0.1)
        LoRA(rank=2, variant=variant, dropout=0.3).apply(model, adapt_only=True)
        randomise_adapters(model)
        if recompute:
            for block in model.modules():
                if isinstance(block, Block):
                    inner = block.forward
                    block.forward = lambda *args, inner=inner: checkpoint(inner, *args, use_reentrant=False)
        torch.manual_seed(3)
        model(*inputs()).square().sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, recomputed)
        assert plain.any()


def test_dropout_is_on_the_adapters_input_and_in_training_only() -> None:
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(8, 8), rank=2, scale=1.0, dropout=0.5)
    x = torch.randn(5, 8)
    base = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), base)  # the base's input is whole while B is zero
    nn.init.normal_(layer.lora_B)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), base + x @ layer.lora_A.T @ layer.lora_B.T)


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_keeps_outputs_in_bfloat16(variant: str) -> None:
    layer_class = DoRALinear if variant == "dora" else LoRALinear
    torch.manual_seed(0)
    layer = layer_class(nn.Linear(32, 32), rank=4, scale=2.0)
    nn.init.normal_(layer.lora_B, std=0.1)
    x = torch.randn(4, 32)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(x)
    assert mixed.dtype == torch.bfloat16
    assert (mixed.float() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dora_keeps_the_length_of_rows_whatever_the_adapter(dtype: torch.dtype) -> None:
    """The lengths come from W, W Aᵀ and A Aᵀ; here against the whole matrix, changed by much, in float64."""
    torch.manual_seed(0)
    layer = DoRALinear(nn.Linear(48, 24, bias=False).to(dtype), rank=4, scale=3.0)
    nn.init.normal_(layer.lora_B, std=2.0)
    whole = layer.weight.double() + 3.0 * layer.lora_B.double() @ layer.lora_A.double()
    precision = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 3e-3}[dtype]
    torch.testing.assert_close(layer._lengths().double(), whole.norm(dim=1), rtol=precision, atol=0)
    torch.testing.assert_close(
        layer.merged_weight().double().norm(dim=1), layer.lora_magnitude.double(), rtol=2 * precision, atol=0
    )


def test_dora_of_a_layer_of_zeros_is_finite() -> None:
    linear = nn.Linear(8, 8)
    nn.init.zeros_(linear.weight)
    layer = DoRALinear(linear, rank=2, scale=1.0)
    layer(torch.randn(3, 8)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters() if parameter.requires_grad)


# PyTorch's compiler looks at the gradient of what one block hands to the next.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_blocks_agree(variant: str) -> None:
    """Outputs and gradients, each block as one graph."""

    def run(compiled: bool) -> tuple[Tensor, list[Tensor]]:
        model = make_model(num_layers=1)
        LoRA(rank=2, variant=variant).apply(model)
        randomise_adapters(model)
        if compiled:
            for block in model.stack.blocks:
                block.compile(fullgraph=True, backend="aot_eager")
        output = model(*inputs())
        output.square().sum().backward()
        return output, [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    torch.testing.assert_close(run(True), run(False), atol=1e-4, rtol=1e-4)


def test_builds_on_meta() -> None:
    with torch.device("meta"):
        model = make_model()
        LoRA(rank=2, variant="dora").apply(model)
    assert all(parameter.is_meta for parameter in model.parameters())
