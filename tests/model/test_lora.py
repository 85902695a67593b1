"""Adapters: against `peft`, at initialisation, merged, and which layers get them."""

import copy
import inspect
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from tests.model.adapted import KINDS, VARIANTS, inputs, make_model, randomise_adapters
from txtrain.model import EncoderDecoder
from txtrain.model.lora import LoRA, LoRALinear, adapters, merge, unmerge

# ---- against peft


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_peft_gives_the_same_outputs_gradients_and_merged_weights(kind: type[nn.Module], variant: str) -> None:
    ours, theirs = make_model(kind).double(), make_model(kind).double()
    LoRA(rank=3, alpha=5, variant=variant).apply(ours, adapt_only=True)
    randomise_adapters(ours)
    names = [name for name, _ in adapters(ours)]
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=names, use_rslora=variant == "rslora", use_dora=variant == "dora"
    )
    peft.inject_adapter_in_model(config, theirs)
    pairs = [(layer, theirs.get_submodule(name)) for name, layer in adapters(ours)]
    assert len(pairs) == sum(isinstance(part, peft.tuners.lora.LoraLayer) for part in theirs.modules())
    for own, other in pairs:
        with torch.no_grad():
            other.lora_A["default"].weight.copy_(own.lora_A)
            other.lora_B["default"].weight.copy_(own.lora_B)
            if variant == "dora":
                other.lora_magnitude_vector["default"].weight.copy_(own.lora_magnitude)

    outputs = []
    for model in (ours, theirs):
        outputs.append(model(*inputs(kind)))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1])
    for own, other in pairs:
        torch.testing.assert_close(own.lora_A.grad, other.lora_A["default"].weight.grad)
        torch.testing.assert_close(own.lora_B.grad, other.lora_B["default"].weight.grad)
        if variant == "dora":
            magnitude = other.lora_magnitude_vector["default"].weight
            torch.testing.assert_close(own.lora_magnitude.grad, magnitude.grad)

    merge(ours)
    for own, other in pairs:
        other.merge()
        torch.testing.assert_close(own.weight, other.base_layer.weight)


def test_adapters_start_as_pefts_do() -> None:
    """A uniform within ±1/√in, B zero."""
    layer = LoRALinear(nn.Linear(400, 30), rank=50, scale=1.0)
    assert layer.lora_A.abs().max() <= 400**-0.5
    assert layer.lora_A.std().item() == pytest.approx((3 * 400) ** -0.5, rel=0.02)
    assert not layer.lora_B.any()


# ---- at initialisation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_changes_at_initialisation(kind: type[nn.Module], variant: str) -> None:
    model = make_model(kind)
    before, weights = model(*inputs(kind)), copy.deepcopy(model.state_dict())
    LoRA(rank=4, variant=variant, dropout=0.5).apply(model)
    after = model(*inputs(kind))
    if variant == "dora":  # divides by a length and multiplies by it
        torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-5)
    else:
        assert torch.equal(after, before)
    kept = model.state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in weights.items())
    assert all(".lora_" in name for name in kept.keys() - weights.keys())


@pytest.mark.parametrize("adapt_only", [False, True])
def test_rank_zero_leaves_the_model_untouched(adapt_only: bool) -> None:
    model, untouched = make_model(), make_model()
    modules = list(model.modules())
    LoRA(rank=0, targets="nothing has this name").apply(model, adapt_only=adapt_only)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
    assert [type(part) for part in modules] == [type(part) for part in untouched.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    for (name, one), (other_name, other) in zip(
        model.state_dict().items(), untouched.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one, other)


# ---- merging


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_outputs_agree_and_unmerging_is_exact(variant: str, dtype: torch.dtype, tolerance: float) -> None:
    model = make_model().to(dtype)
    LoRA(rank=4, variant=variant).apply(model)
    randomise_adapters(model)
    weights = copy.deepcopy(model.state_dict())
    adapted = model(*inputs())
    merge(model)
    merged = model(*inputs())
    assert (merged - adapted).abs().max() < tolerance * adapted.abs().max()
    name = "stack.blocks.0.ffn.up_proj.weight"
    assert not torch.equal(model.state_dict()[name], weights[name])
    unmerge(model)
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())
    assert torch.equal(model(*inputs()), adapted)


def test_merge_of_bfloat16_rounds_once() -> None:
    """Also under autocast, which would round the product of the adapters first."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(64, 64).bfloat16(), rank=8, scale=2.0)
    nn.init.normal_(layer.lora_B)
    weight, low, high = (tensor.double() for tensor in (layer.weight, layer.lora_A, layer.lora_B))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer.merge()
    exact = (weight + 2.0 * high @ low).bfloat16()
    assert (layer.weight != exact).float().mean() < 0.001  # ties of rounding aside


def test_merging_into_a_tied_weight_is_refused_before_anything_changes() -> None:
    model = make_model()
    LoRA(rank=2, targets=["all", "head.linear"]).apply(model)
    randomise_adapters(model)
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^the adapter of head\.linear cannot be merged.*embedding\.tied=false"):
        merge(model)
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())


# ---- targets


@pytest.mark.parametrize(
    "targets, expected",
    [
        ("all", 2 * 6),
        ("q_proj", 2),
        (["q_proj", "v_proj"], 4),
        ("*.ffn.*", 4),
        ("stack.blocks.0.*", 6),
        (["all", "head.linear"], 13),
        ("attention.o_proj", 2),
        ("stack.blocks.1.ffn.up_proj", 1),
        (["q_proj", "*.q_proj", "all"], 12),
    ],
)
def test_targets(targets: str | list[str], expected: int) -> None:
    model = make_model()
    LoRA(rank=2, targets=targets).apply(model)
    assert len(list(adapters(model))) == expected


def test_targets_of_cross_attention() -> None:
    model = make_model(EncoderDecoder)
    assert LoRA(rank=2, targets="cross_attention.q_proj").matches(model).keys() == {
        f"decoder.stack.blocks.{layer}.cross_attention.q_proj" for layer in range(2)
    }
    assert len(LoRA(rank=2, targets="*.cross_attention.*").matches(model)) == 2 * 4
    assert len(LoRA(rank=2).matches(model)) == 2 * 6 + 2 * 10
    assert len(LoRA(rank=2, targets="encoder.*").matches(model)) == 2 * 6


@pytest.mark.parametrize(
    "target, message",
    [
        ("q_porj", r"^lora\.targets has 'q_porj', which matches no .* nearest are q_proj.*: set lora\.targets=q_proj$"),
        ("zzz", r"^lora\.targets has 'zzz', .* there are q_proj, .*: set lora\.targets=all$"),
        ("roj", r"^lora\.targets has 'roj'"),
    ],
)
def test_a_target_that_matches_nothing_names_its_neighbours(target: str, message: str) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=message) as error:
        LoRA(rank=2, targets=["v_proj", target]).apply(model)
    assert "\n" not in str(error.value)
    assert not list(adapters(model))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "options", [{"rank": -1}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": []}, {"targets": ""}], ids=str
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^lora\.{next(iter(options))} is .*lora\.\w+="):
        LoRA(**options)


def test_the_config_has_the_constructors_defaults_and_takes_lists() -> None:
    config = OmegaConf.load(Path(__file__).parents[2] / "conf/lora/default.yaml")
    defaults = {name: parameter.default for name, parameter in inspect.signature(LoRA).parameters.items()}
    assert {name: value for name, value in config.items() if name != "_target_"} == defaults
    lora = instantiate(config, rank=2, targets=["q_proj", "v_proj"], _convert_="all")
    assert len(lora.matches(make_model())) == 4
