"""Weights in 16 bits: random rounding keeps the mean, small weights have masters, moments are in float32."""

import copy
from functools import partial

import pytest
import torch

from tests.test_optim import new_model, train
from txtrain.optim import HalfOptimizer, Muon, adamw, in_float32, sgd
from txtrain.optim.half import random_bits, round_at_random

OPTIMIZERS = [adamw, sgd, Muon]


def rounded(values, dtype=torch.bfloat16, seed="0", first=0):
    values = values.clone()
    round_at_random(values, dtype, seed=seed, first=first)
    return values


def in_half(new_optimizer, *, seed=0, begin=0):
    """A model in bfloat16 and its optimizer, which counts its steps by itself."""
    model = new_model().to(torch.bfloat16)
    taken = [begin]
    optimizer = in_float32(new_optimizer(model), model, seed=seed, step=lambda: taken[0])
    inner = optimizer.step

    def step(closure=None):
        inner(closure)
        taken[0] += 1

    optimizer.step = step
    return model, optimizer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_keeps_the_mean_and_goes_to_a_neighbour(dtype):
    step = torch.finfo(dtype).eps
    for sign in (1, -1):
        for share in (0.0, 0.01, 0.3, 0.5, 0.9):
            value = sign * (1 + share * step)
            found = rounded(torch.full((100_000,), value), dtype)
            assert torch.equal(found, found.to(dtype).float())
            assert set((sign * found).tolist()) <= {1.0, 1 + step}
            assert ((sign * found - 1) / step).mean().item() == pytest.approx(share, abs=5e-3)


def test_what_is_not_finite_stays_so():
    nan = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    assert rounded(nan).isnan().all()
    infinite = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0])
    assert torch.equal(rounded(infinite), infinite)


def test_bits_are_of_the_element_whatever_part_of_the_tensor_is_asked_for():
    whole = random_bits(200_000, seed="3 name", first=0, device=torch.device("cpu"))
    for first, last in ((0, 1), (65_535, 65_537), (199_990, 200_000)):
        part = random_bits(last - first, seed="3 name", first=first, device=torch.device("cpu"))
        assert torch.equal(part, whole[first:last])
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rounded(values)[70_001:], rounded(values[70_001:], first=70_001))
    assert not torch.equal(rounded(values), rounded(values, seed="1"))


def test_bits_are_of_the_seed_the_step_and_the_name(monkeypatch):
    """Two weights that are alike in all else get bits of their own."""
    monkeypatch.setattr("txtrain.optim.half.SMALL", 0)

    def stepped(*, seed=0, step=0):
        model = torch.nn.ModuleDict({name: torch.nn.Linear(64, 64, bias=False) for name in "ab"}).to(torch.bfloat16)
        for parameter in model.parameters():
            parameter.data.fill_(1.0)
            parameter.grad = torch.ones_like(parameter)
        in_float32(torch.optim.SGD(model.parameters(), lr=1e-3), model, seed=seed, step=lambda: step).step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    first, second = stepped()
    assert all(0.2 < (weight < 1).float().mean().item() < 0.3 for weight in (first, second))  # 0.001 of 0.0039
    assert not torch.equal(first, second)
    assert torch.equal(first, stepped()[0])
    assert not torch.equal(first, stepped(seed=1)[0])
    assert not torch.equal(first, stepped(step=1)[0])


def test_bits_look_random():
    """Each of the 32 is set half of the time, and two of them, or those of two elements or seeds, agree half of it."""
    bits = random_bits(2**17, seed="0", first=0, device=torch.device("cpu")).long()
    other = random_bits(2**17, seed="1", first=0, device=torch.device("cpu")).long()
    each = [(bits >> place & 1).double() for place in range(32)]
    for place, one in enumerate(each):
        assert one.mean().item() == pytest.approx(0.5, abs=0.01)
        for pair in (each[place - 1], torch.roll(one, 1), other >> place & 1):
            assert (one == pair).double().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("new_optimizer", OPTIMIZERS)
def test_small_weights_go_as_in_float32(new_optimizer):
    """All weights of this model are small: with the gradients of the model in bfloat16, steps are those in float32."""
    model, optimizer = in_half(new_optimizer)
    plain = new_model().to(torch.bfloat16).float()
    reference = new_optimizer(plain)
    assert len(optimizer.masters) == len(list(model.parameters()))
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for parameter, twin in zip(model.parameters(), plain.parameters(), strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16()
            twin.grad = parameter.grad.float()
        optimizer.step()
        reference.step()
    for parameter, twin in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(optimizer.masters[parameter], twin)
        assert torch.equal(parameter, twin.bfloat16())
    assert all(value.dtype == torch.float32 for state in optimizer.state.values() for value in state.values())


@pytest.mark.parametrize("new_optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bucket", [1, 600, 2**24])
def test_large_weights_go_as_in_float32_on_average(monkeypatch, new_optimizer, bucket):
    """A single step from the same weights, many times with other bits; buckets change nothing."""
    monkeypatch.setattr("txtrain.optim.half.SMALL", 0)
    monkeypatch.setattr("txtrain.optim.half.BUCKET", bucket)
    reference = new_model().to(torch.bfloat16).float()
    start = {name: weight.detach().clone() for name, weight in reference.named_parameters()}
    grads = [torch.randn_like(weight).bfloat16() for weight in start.values()]
    for parameter, grad in zip(reference.parameters(), grads, strict=True):
        parameter.grad = grad.float()
    new_optimizer(reference, lr=1e-3).step()
    count, moved = 100, {name: torch.zeros_like(weight) for name, weight in start.items()}
    for seed in range(count):
        model, optimizer = in_half(partial(new_optimizer, lr=1e-3), seed=seed)
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        for name, parameter in model.named_parameters():
            moved[name] += (parameter.detach() - start[name]) / count
    matrices = [(name, weight) for name, weight in reference.named_parameters() if weight.ndim == 2]
    assert len(matrices) == 15
    for name, weight in matrices:
        step = 2**-7 * torch.maximum(weight.abs(), start[name].abs())
        off = (moved[name] - (weight - start[name])) / (step + 1e-9)
        assert off.abs().max() < 6 * 0.5 / count**0.5  # deviations of a mean of so many
        assert off.mean().abs() < 6 * 0.5 / (count * off.numel()) ** 0.5


def test_a_second_moment_falls_again():
    """With beta2 = 0.999 a moment in bfloat16 stays where it is, since 0.1 % of it is less than half of a step."""
    model, optimizer = in_half(partial(adamw, betas=[0.9, 0.999]))
    for size in (1.0, *[0.0] * 20):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, size)
        optimizer.step()
    for state in optimizer.state.values():
        assert state["exp_avg_sq"].mean().item() == pytest.approx(0.001 * 0.999**20, rel=1e-4)


@pytest.mark.parametrize("new_optimizer", OPTIMIZERS)
@pytest.mark.parametrize("small", [0, 2**14])
def test_a_restored_optimizer_goes_on_exactly(monkeypatch, new_optimizer, small):
    monkeypatch.setattr("txtrain.optim.half.SMALL", small)
    model, optimizer = in_half(new_optimizer)
    train(model, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    twin, restored = in_half(new_optimizer, begin=4)
    restored.load_state_dict(state)
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.copy_(ours)
            if ours in optimizer.masters:
                restored.masters[theirs].copy_(optimizer.masters[ours])
    for ours, theirs in zip(train(model, optimizer, start=4), train(twin, restored, start=4), strict=True):
        assert torch.equal(ours, theirs)


def test_moments_in_16_bits_are_widened():
    model, optimizer = in_half(adamw)
    train(model, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    for values in state["state"].values():
        values |= {key: value.bfloat16() for key, value in values.items() if value.dim()}
    optimizer.load_state_dict(state)
    for values in optimizer.state.values():
        assert all(value.dtype == torch.float32 for value in values.values())
    train(model, optimizer)


def test_other_weights_have_the_optimizer_as_it_is():
    for dtype in (torch.float32, torch.float64):
        model = new_model().to(dtype)
        optimizer = adamw(model)
        assert in_float32(optimizer, model, seed=0, step=lambda: 0) is optimizer


def test_weights_in_float32_beside_those_in_16_bits_are_stepped_once():
    model, plain = new_model(), new_model()
    half = model.stack.blocks[0]
    half.to(torch.bfloat16)
    optimizer = in_float32(sgd(model, momentum=0.0), model, seed=0, step=lambda: 0)
    assert isinstance(optimizer, HalfOptimizer)
    reference = sgd(plain, momentum=0.0)
    for one in (model, plain):
        for parameter in one.parameters():
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    reference.step()
    ours, theirs = dict(model.named_parameters()), dict(plain.named_parameters())
    same = [name for name, parameter in ours.items() if parameter.dtype == torch.float32]
    assert len(same) > 3
    assert all(torch.equal(ours[name], theirs[name]) for name in same)
