"""A base in 4 bits under adapters (QLoRA): what the bytes mean, what is computed with them, and what they cost."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from tests.model.adapted import VARIANTS, inputs, make_model, randomise_adapters
from txtrain.model.lora import DoRALinear, LoRA, LoRALinear, adapters, merge, nf4, parameter_counts, unmerge
from txtrain.model.lora.exchange import remove, taken
from txtrain.model.saved import measure


def quantised(variant="lora", **shape):
    """A model after some training of adapters on a base in 4 bits."""
    model, lora = make_model(**{"dim": 64} | shape), LoRA(rank=2, variant=variant, base_dtype="nf4")
    lora.apply(model, adapt_only=True)
    lora.quantise(model)
    randomise_adapters(model)
    return model


def with_whole_weights(model):
    """The same model, its base as the numbers that the bytes mean."""
    twin = copy.deepcopy(model)
    for _, layer in adapters(twin):
        layer.weight.data = layer.whole_weight
    return twin


def gradients(model):
    model.zero_grad()
    output = model(*inputs())
    output.square().mean().backward()
    return output.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


# ---- the bytes


def levels():
    """NF4's 16 numbers (appendix E of the paper): quantiles of the normal distribution, the largest scaled to 1."""
    normal, end = torch.distributions.Normal(0.0, 1.0), 0.9677083
    above = normal.icdf(torch.linspace(end, 0.5, 9, dtype=torch.float64)[:-1])
    below = -normal.icdf(torch.linspace(end, 0.5, 8, dtype=torch.float64)[:-1])
    return torch.cat([above, below, torch.zeros(1)]).sort()[0] / above.max()


def test_every_number_is_the_nearest_of_16_times_the_scale_of_its_block():
    torch.manual_seed(0)
    matrix = torch.randn(256, 200)  # 800 blocks, more than share one scale of their scales
    original, made = (
        whole.double().view(-1, 64)
        for whole in (matrix, nf4.dequantise(nf4.quantise(matrix), *matrix.shape, torch.float32))
    )
    largest, scales = (blocks.abs().amax(1, keepdim=True) for blocks in (original, made))
    nearest = levels()[((original / largest)[..., None] - levels()).abs().argmin(-1)]
    torch.testing.assert_close(made, nearest * scales, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scales, largest, atol=0, rtol=0.05)  # of 8 bits


@pytest.mark.parametrize("shape", [(7, 5), (3, 33), (1, 1), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_same_bytes_each_time_for_every_shape_and_type(shape, dtype):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=dtype)
    packed = nf4.quantise(matrix)
    assert torch.equal(packed, nf4.quantise(matrix.clone()))
    assert packed.shape == nf4.quantise(matrix.to("meta")).shape
    made = nf4.dequantise(packed, *shape, dtype)
    assert made.dtype == dtype
    assert (made - matrix).abs().max() < 0.2 * matrix.abs().max()
    # A part of a larger tensor, from an odd byte on, as shards leave it.
    inside = torch.cat([packed.new_zeros(1), packed])[1:]
    assert torch.equal(nf4.dequantise(inside, *shape, dtype), made)
    assert not nf4.dequantise(nf4.quantise(torch.zeros(shape)), *shape, dtype).any()


# ---- what is computed with them


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients_are_those_of_the_numbers_that_the_bytes_mean(variant):
    """In float64."""
    model = quantised(variant)
    output, found = gradients(model)
    exact, expected = gradients(with_whole_weights(model).double())
    torch.testing.assert_close(output.double(), exact, atol=1e-5, rtol=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert (gradient - expected[name]).abs().max() < 1e-4 * expected[name].abs().max(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_starts_as_the_base_in_4_bits(variant):
    """DoRA's m is the lengths of what is left of the rows."""
    torch.manual_seed(0)
    linear = nn.Linear(96, 48)
    layer = (DoRALinear if variant == "dora" else LoRALinear)(copy.deepcopy(linear), rank=2, scale=1.0)
    layer.quantise()
    x = torch.randn(5, 96)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.whole_weight, linear.bias))
    assert 0.01 < (layer.whole_weight - linear.weight).norm() / linear.weight.norm() < 0.12


@pytest.mark.parametrize("how", ["autocast", "a model in bfloat16"])
def test_in_bfloat16_the_product_is_one(how):
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(64, 32), rank=2, scale=1.0)
    layer.quantise()
    x = torch.randn(5, 64)
    expected = nn.functional.linear(x.bfloat16(), layer.whole_weight.bfloat16(), layer.bias.bfloat16())
    if how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = layer(x)
    else:
        kept = layer.weight.clone()
        output = layer.bfloat16()(x.bfloat16())
        assert torch.equal(layer.weight, kept)  # a cast of the model leaves the bytes
    assert torch.equal(output, expected)


# Both are of what PyTorch's compiler itself does.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated")
def test_compiled_blocks_agree():
    """Each block as one graph."""
    model = quantised("dora", num_layers=1)
    expected = gradients(model)
    for block in model.stack.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(model), expected, atol=1e-5, rtol=1e-4)


def test_the_first_pass_may_be_one_of_inference():
    """Lightning validates before it trains; what is made then and kept must serve later."""
    nf4._code_of_scales.cache_clear()
    model = quantised(num_layers=1)
    with torch.inference_mode():
        first = model(*inputs())
    assert torch.equal(gradients(model)[0], first)


# ---- what they cost


def test_the_base_has_4_13_bits_for_each_weight_and_counts_as_many_as_it_was():
    model, plain = quantised(dim=256, num_layers=1), make_model(dim=256, num_layers=1)
    weights = [(layer.weight, plain.get_submodule(name).weight) for name, layer in adapters(model)]
    assert 8 * sum(own.nbytes for own, _ in weights) / sum(was.numel() for _, was in weights) == pytest.approx(
        4.127, abs=0.005
    )
    total, trained = parameter_counts(model)
    assert total - trained == sum(parameter.numel() for parameter in plain.parameters())
    assert not any(own.requires_grad for own, _ in weights)


def test_no_weight_is_kept_as_numbers_for_the_backward_pass():
    kept = []
    for model in (quantised(), with_whole_weights(quantised())):
        with measure(model) as result:
            model(*inputs()).sum().backward()
        kept.append(result.bytes_kept)
    assert kept[0] == kept[1]


# ---- apart from training


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_and_unmerged(variant):
    model = quantised(variant)
    output, bytes_before = model(*inputs()), copy.deepcopy(model.state_dict())
    merge(model)
    torch.testing.assert_close(model(*inputs()), output, atol=1e-5, rtol=1e-4)
    unmerge(model)
    assert all(torch.equal(tensor, bytes_before[name]) for name, tensor in model.state_dict().items())


def test_adapters_are_taken_but_the_base_stays_with_them():
    model = quantised()
    assert taken(model).keys() == dict(adapters(model)).keys()
    with pytest.raises(ValueError, match=r"^the weight of .* is in 4 bits: take adapters off a model before it is"):
        remove(model)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 0}, r"lora\.rank=0 adds none: set lora\.rank=8$"),
        ({"init": "pissa"}, r"never change: set lora\.init=kaiming instead of pissa, or lora\.base_dtype=bfloat16$"),
        ({"init": "olora"}, r"set lora\.init=kaiming instead of olora"),
        ({"merge_every": 10}, r"never change: set lora\.merge_every=0, or lora\.base_dtype=bfloat16$"),
        ({"targets": "embedding.tokens"}, r"for linear layers, and lora\.targets has none: set lora\.targets=all$"),
        ({"targets": "head.linear"}, r"cannot hold head\.linear's weight, which another layer uses too: leave it out"),
    ],
)
def test_what_cannot_be_is_refused_and_says_what_to_type(settings, message):
    with pytest.raises(ValueError, match=r"^lora\.base_dtype=nf4 .*" + message):
        LoRA(**{"rank": 2, "base_dtype": "nf4"} | settings).apply(make_model(), adapt_only=True)


def test_a_base_that_is_not_trained_is_refused():
    with pytest.raises(ValueError, match=r"^lora\.base_dtype=nf4 is for weights that were trained.*init_from=FOLDER$"):
        LoRA(rank=2, base_dtype="nf4").apply(make_model())


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch):
    """And nothing needs it that does not quantise, such as the export of such a run."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model, lora = make_model(), LoRA(rank=2, base_dtype="nf4")
    lora.apply(model, adapt_only=True)
    with pytest.raises(ValueError, match=r"^lora\.base_dtype=nf4 needs bitsandbytes.*pip install 'txtrain\[qlora\]'"):
        lora.quantise(model)
    assert all(layer.weight.is_floating_point() for _, layer in adapters(model))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_computes_with_the_bytes_that_the_cpu_made():
    model = quantised("dora")
    _, expected = gradients(model)
    twin = copy.deepcopy(model).cuda()
    for name, layer in adapters(twin):
        torch.testing.assert_close(layer.whole_weight.cpu(), model.get_submodule(name).whole_weight)
    twin(*(tensor.cuda() for tensor in inputs())).square().mean().backward()
    for name, gradient in expected.items():
        found = twin.get_parameter(name).grad.cpu()
        assert (found - gradient).abs().max() < 1e-2 * gradient.abs().max(), name
