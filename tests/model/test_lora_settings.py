"""Which layers get which adapters, how they start, what is held in bfloat16, and several of them on one model."""

import copy

import peft
import pytest
import torch
from torch import nn

from tests.model.adapted import VARIANTS, inputs, make_model, randomise_adapters
from txtrain.model.lora import DoRAEmbedding, LoRA, LoRAEmbedding, adapters, merge
from txtrain.model.lora.exchange import NamedAdapters, remove, taken
from txtrain.model.lora.initial import principal
from txtrain.optim import Muon, adamw, sgd

# ---- patterns, ranges of layers, embeddings and head


def test_patterns_give_other_ranks_and_strengths():
    model = make_model()
    lora = LoRA(
        rank=4,
        alpha=8,
        rank_pattern={"attention.v_proj": 1, "*.ffn.*": 2},
        alpha_pattern={"up_proj": 6, "*.blocks.1.*": 2},
    )
    lora.apply(model)
    found = {name.removeprefix("stack.blocks."): (len(layer.lora_A), layer.scale) for name, layer in adapters(model)}
    assert found["0.attention.q_proj"] == (4, 8 / 4)
    assert found["1.attention.v_proj"] == (1, 2 / 1)
    assert found["1.ffn.up_proj"] == (2, 6 / 2)  # the first that matches counts
    assert found["0.ffn.down_proj"] == (2, 8 / 2)


@pytest.mark.parametrize("layers, numbers", [(1, {1}), ("1-2", {1, 2}), ([0, 2], {0, 2}), (None, {0, 1, 2})])
def test_layers_are_those_blocks_and_leave_the_head_in(layers, numbers):
    model = make_model(num_layers=3)
    LoRA(rank=2, targets=["q_proj", "head.linear"], layers=layers).apply(model)
    names = [name for name, _ in adapters(model)]
    assert names.pop() == "head.linear"
    assert {int(name.split(".")[2]) for name in names} == numbers


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"layers": "1-5"}, r"^lora\.layers is 1-5, and there are layers 0 to 1: set lora\.layers=0-1$"),
        (
            {"layers": "first"},
            r"^lora\.layers is 'first': give a number \(lora\.layers=0\), a range such as 0-3, or a list$",
        ),
        ({"rank_pattern": {"q_porj": 2}}, r"^lora\.rank_pattern has 'q_porj'.*set lora\.rank_pattern=\{q_proj:2\}$"),
        ({"init": "pissa", "rank": 20}, r"^lora\.init=pissa takes 20 directions of .* set lora\.rank=16"),
        ({"init": "olora", "targets": "head.linear"}, r"^the adapter of head\.linear cannot be merged.*tied"),
    ],
)
def test_settings_that_a_model_cannot_have_name_what_to_type(settings, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        LoRA(**({"rank": 2} | settings)).apply(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_embeddings_get_adapters_where_they_are_named(variant):
    """A glob does not mean them. With a table of its own the head keeps its weight when they are merged."""
    model = make_model()
    assert not any(isinstance(layer, nn.Embedding) for layer in LoRA(rank=2, targets="*").matches(model).values())
    model.head.linear.weight = nn.Parameter(model.head.linear.weight.detach().clone())
    before = model(*inputs())
    LoRA(rank=2, targets="embedding.tokens", variant=variant).apply(model, adapt_only=True)
    assert type(model.embedding.tokens) is (DoRAEmbedding if variant == "dora" else LoRAEmbedding)
    torch.testing.assert_close(model(*inputs()), before)
    randomise_adapters(model)
    adapted = model(*inputs())
    adapted.square().sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    merge(model)
    torch.testing.assert_close(model(*inputs()), adapted)
    assert not torch.allclose(adapted, before)


# ---- how adapters start


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_main_part_of_a_weight_moves_into_the_adapter(init, variant):
    """As in peft: A, B and what is left of W; the model gives what it gave."""
    ours, theirs = make_model(), make_model()
    before = ours(*inputs())
    LoRA(rank=3, alpha=6, variant=variant, init=init).apply(ours, adapt_only=True)
    torch.testing.assert_close(ours(*inputs()), before, atol=1e-5, rtol=1e-4)
    names = [name for name, _ in adapters(ours)]
    options = {"use_rslora": variant == "rslora", "use_dora": variant == "dora", "init_lora_weights": init}
    peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=6, target_modules=names, **options), theirs)
    for name, own in adapters(ours):
        other = theirs.get_submodule(name)
        torch.testing.assert_close(own.weight, other.base_layer.weight, atol=1e-4, rtol=1e-3)
        theirs_change = other.lora_B["default"].weight @ other.lora_A["default"].weight
        torch.testing.assert_close(own.lora_B @ own.lora_A, theirs_change, atol=1e-4, rtol=1e-3)
        assert own.lora_A.any()
        assert not own.lora_A0.requires_grad


def test_the_fast_decomposition_finds_the_main_part_of_a_weight_that_has_one():
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 20))[0] for size in (48, 32))
    matrix = left * 0.5 ** torch.arange(20) @ right.T
    (low, high), (fast_low, fast_high) = (principal(matrix, 4, 2.0, init) for init in ("pissa", "pissa_niter_16"))
    torch.testing.assert_close(high @ low, fast_high @ fast_low, atol=1e-5, rtol=1e-4)
    assert torch.linalg.matrix_norm(matrix - 2.0 * fast_high @ fast_low, 2) == pytest.approx(0.5**4, rel=1e-3)


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_taken_off_an_adapter_is_one_of_the_weights_that_were_there(variant):
    """Twice the rank gives back what PiSSA took out."""
    model, plain = make_model(), make_model()
    LoRA(rank=3, init="pissa", variant=variant).apply(model)
    randomise_adapters(model)
    adapted = model(*inputs())
    for name, change in taken(model).items():
        weight = plain.get_submodule(name).weight
        whole = weight + change.scale * change.high @ change.low
        if change.magnitude is not None:
            whole = whole * (change.magnitude / whole.norm(dim=1))[:, None]
        weight.data = whole
    torch.testing.assert_close(plain(*inputs()), adapted, atol=1e-5, rtol=1e-4)
    remove(model)
    for name, weight in make_model().named_parameters():
        torch.testing.assert_close(model.get_parameter(name), weight, atol=1e-6, rtol=1e-5)


# ---- memory


def tensors_kept(model):
    """Elements of gradients and of the optimizer's state after a step."""
    optimizer = adamw(model)
    model(*inputs()).square().mean().backward()
    optimizer.step()
    gradients = sum(p.grad.numel() for p in model.parameters() if p.grad is not None)
    states = sum(v.numel() for state in optimizer.state.values() for v in state.values() if v.dim())
    return gradients, states


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_base_has_no_gradient_and_no_optimizer_state(variant):
    model = make_model(dim=32)
    LoRA(rank=2, variant=variant, init="pissa").apply(model, adapt_only=True)
    learned = sum(p.numel() for name, p in model.named_parameters() if name.endswith(("_A", "_B", "_magnitude")))
    assert tensors_kept(model) == (learned, 2 * learned)
    assert learned < 0.3 * sum(parameter.numel() for parameter in make_model(dim=32).parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_base_in_bfloat16_under_adapters_in_float32(variant):
    """Its product is one in bfloat16; adapters, their gradients and what goes on are float32; a step trains it."""
    exact, model = make_model(), make_model()
    LoRA(rank=2, variant=variant).apply(exact, adapt_only=True)
    torch.manual_seed(0)
    LoRA(rank=2, variant=variant, base_dtype="bfloat16").apply(model, adapt_only=True)
    for name, layer in adapters(model):
        kept = exact.get_submodule(name)
        assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
        assert torch.equal(layer.weight, kept.weight.bfloat16())
        assert all(p.dtype == torch.float32 for p in layer.parameters() if p.requires_grad)
    output = model(*inputs())
    assert output.dtype == torch.float32
    assert (output - exact(*inputs())).abs().max() < 0.02 * output.abs().max()
    gradients, _ = tensors_kept(model)
    assert gradients == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(*inputs()).isfinite().all()


# ---- two learning rates


@pytest.mark.parametrize("new_optimizer", [adamw, sgd, Muon])
def test_b_learns_faster_under_every_optimizer(new_optimizer):
    """As with one rate and B's groups changed by hand."""
    fast, by_hand = make_model(), make_model()
    LoRA(rank=2, b_lr_ratio=16).apply(fast)
    LoRA(rank=2).apply(by_hand)
    randomise_adapters(fast)
    by_hand.load_state_dict(fast.state_dict())
    optimizer = new_optimizer(fast, lr=0.01)
    highs = {layer.lora_B for _, layer in adapters(fast)}
    rates = {group["lr"]: set(group["params"]) & highs for group in optimizer.param_groups}
    assert rates[0.16] == highs
    assert not rates[0.01]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        [parameter for parameter in fast.parameters() if parameter.requires_grad]
    )
    assert optimizer.param_groups[0]["lr"] == 0.01  # what is reported
    slow = new_optimizer(by_hand, lr=0.01)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    moved = {}
    for model, made in ((fast, optimizer), (by_hand, slow)):
        before = copy.deepcopy(model.state_dict())
        model(*inputs()).square().mean().backward()
        made.step()
        moved[model] = {name: weight - before[name] for name, weight in model.state_dict().items()}
    name = "stack.blocks.0.ffn.up_proj.lora_"
    torch.testing.assert_close(moved[fast][f"{name}B"], 8 * moved[by_hand][f"{name}B"], rtol=0.02, atol=1e-5)
    torch.testing.assert_close(moved[fast][f"{name}A"], 0.5 * moved[by_hand][f"{name}A"], rtol=0.02, atol=1e-5)


# ---- several adapters


def test_adapters_are_switched_and_composed():
    model = make_model()
    plain = model(*inputs())
    LoRA(rank=2, targets=["q_proj", "up_proj"]).apply(model)
    randomise_adapters(model)
    first = model(*inputs())
    named = NamedAdapters(model)
    named.add("second", LoRA(rank=3, alpha=6, targets=["up_proj", "down_proj"]))
    assert torch.equal(model(*inputs()), first)
    named.activate("second")
    torch.testing.assert_close(model(*inputs()), plain)  # B is zero
    randomise_adapters(model)  # as training does, in place
    second = model(*inputs())
    named.activate("default")
    assert torch.equal(model(*inputs()), first)
    named.activate("second")
    assert torch.equal(model(*inputs()), second)

    named.activate(default=0.5, second=2.0)
    up_proj = "stack.blocks.0.ffn.up_proj"
    expected = model.get_submodule(up_proj).weight.detach().clone()
    for name, weight in (("default", 0.5), ("second", 2.0)):
        change = named.held[name][up_proj]
        expected += weight * change.scale * change.high @ change.low
    torch.testing.assert_close(model.get_submodule(up_proj).merged_weight(), expected)
    named.activate()
    assert torch.equal(model(*inputs()), plain)
    assert not list(adapters(model))
    with pytest.raises(ValueError, match="there is no adapter third: there are default, second"):
        named.activate("third")


def test_dora_is_not_composed():
    model = make_model()
    LoRA(rank=2, variant="dora").apply(model)
    named = NamedAdapters(model)
    named.activate("default")
    with pytest.raises(ValueError, match=r"^adapter default is of DoRA.*activate it by itself$"):
        named.activate(default=0.5)


# ---- merging while training


def test_the_learning_rate_rises_anew_after_each_merge():
    lora = LoRA(rank=2, merge_every=5, merge_warmup=2)
    assert [lora.rewarm(step) for step in range(12)] == [1] * 5 + [1 / 3, 2 / 3, 1, 1, 1] + [1 / 3, 2 / 3]
    assert all(LoRA(rank=2).rewarm(step) == 1.0 for step in range(12))


@pytest.mark.parametrize("settings", [{"variant": "dora"}, {"init": "pissa"}])
def test_adapters_that_cannot_start_anew_are_not_merged(settings):
    with pytest.raises(ValueError, match=r"^lora\.merge_every is 5, .*lora\.variant=lora lora\.init=kaiming$"):
        LoRA(rank=2, merge_every=5, **settings)
