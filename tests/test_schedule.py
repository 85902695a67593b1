"""Schedules against formulas, nanoGPT's function and transformers'."""

import math

import pytest
import torch
import transformers

from txtrain.schedule import Constant, Cosine, InverseSqrt, Linear, WarmupStableDecay

TOTAL = 200
ALL = [Cosine, Linear, WarmupStableDecay, Constant, InverseSqrt]


def curve(schedule, total=TOTAL):
    return [schedule.scale(step, total) for step in range(total + 1)]


def reference(new_schedule, **arguments):
    """The factors of one of transformers' schedules."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = new_schedule(optimizer, **arguments)
    factors = []
    for _ in range(TOTAL + 1):
        factors.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return factors


def nanogpt(it, learning_rate=1e-3, min_lr=1e-4, warmup_iters=100, lr_decay_iters=2000):
    """nanoGPT's `get_lr`, with the numbers of its recipe for Shakespeare on a CPU."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (learning_rate - min_lr)


def test_cosine_is_nanogpts():
    schedule = Cosine(warmup=100, end=0.1)
    for step in range(2100):
        assert 1e-3 * schedule.scale(step, 2000) == pytest.approx(nanogpt(step), rel=1e-12)


@pytest.mark.parametrize(
    "ours, theirs, arguments",
    [
        (Cosine(), "get_cosine_schedule_with_warmup", {"num_training_steps": TOTAL}),
        (
            Cosine(end=0.1),
            "get_cosine_with_min_lr_schedule_with_warmup",
            {"num_training_steps": TOTAL, "min_lr_rate": 0.1},
        ),
        (Linear(), "get_linear_schedule_with_warmup", {"num_training_steps": TOTAL}),
        (Constant(), "get_constant_schedule_with_warmup", {}),
        (
            WarmupStableDecay(decay=40, shape="linear", end=0.1),
            "get_wsd_schedule",
            {"num_decay_steps": 40, "num_training_steps": TOTAL, "min_lr_ratio": 0.1, "decay_type": "linear"},
        ),
    ],
)
def test_curves_are_transformers(ours, theirs, arguments):
    theirs = reference(getattr(transformers, theirs), num_warmup_steps=0, **arguments)
    assert curve(ours) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("new_schedule", ALL)
def test_warmup_is_transformers_one_step_ahead(new_schedule):
    """Theirs begins with a step at a learning rate of zero."""
    theirs = reference(transformers.get_constant_schedule_with_warmup, num_warmup_steps=21)
    assert curve(new_schedule(warmup=20))[:21] == pytest.approx(theirs[1:22], abs=1e-12)


def test_inverse_sqrt_is_that_of_the_first_transformer():
    schedule, warmup = InverseSqrt(warmup=30), 31
    peak = warmup**-0.5
    for step in range(1, 500):
        formula = min(step**-0.5, step * warmup**-1.5) / peak
        assert schedule.scale(step - 1, 500) == pytest.approx(formula, rel=1e-12)


def test_decay_by_the_square_root():
    schedule = WarmupStableDecay(warmup=10, decay=0.25, end=0.2)
    assert curve(schedule)[10:151] == [1.0] * 141
    for step in range(150, TOTAL + 1):
        assert schedule.scale(step, TOTAL) == pytest.approx(0.2 + 0.8 * (1 - math.sqrt((step - 150) / 50)), abs=1e-12)


@pytest.mark.parametrize("new_schedule", ALL)
def test_a_fraction_is_that_many_steps(new_schedule):
    assert curve(new_schedule(warmup=0.1)) == curve(new_schedule(warmup=20))


@pytest.mark.parametrize("new_schedule", ALL)
@pytest.mark.parametrize("total", [1, 2, 5])
def test_any_length_gives_factors_above_zero_until_the_end(new_schedule, total):
    """A run of two steps with a warm-up of a hundred is a run of two steps of warm-up."""
    for warmup in (0, 100, 0.5):
        assert all(0 < new_schedule(warmup=warmup).scale(step, total) <= 1 for step in range(total))


@pytest.mark.parametrize(
    "new_schedule, arguments, words",
    [
        (Cosine, {"warmup": -1}, "schedule.warmup is -1"),
        (Cosine, {"warmup": 1.5}, "schedule.warmup is 1.5"),
        (Linear, {"end": 2.0}, "schedule.end is 2.0"),
        (WarmupStableDecay, {"decay": 1.0}, "schedule.decay is 1.0"),
        (WarmupStableDecay, {"warmup": 0.5, "decay": 0.6}, "schedule.decay=0.5"),
    ],
)
def test_nonsense_is_one_line(new_schedule, arguments, words):
    with pytest.raises(ValueError, match=words) as error:
        new_schedule(**arguments)
    assert "\n" not in str(error.value)
