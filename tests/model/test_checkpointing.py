"""Checkpointing: the same losses and gradients to the bit, in every kind of model."""

import copy
import shutil
from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.model.trained import (
    MODELS,
    POLICIES,
    new_model,
    tokens,
    train,
)
from txtrain.model.checkpointing import (
    CheckpointingPolicy,
    RecomputeEvery,
    Selective,
)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("policy", POLICIES)
def test_losses_and_gradients_are_the_same_to_the_bit(policy: str, kind: str, autocast: bool) -> None:
    expected_losses, expected = train(new_model(**MODELS[kind]), autocast=autocast)
    model = new_model(**MODELS[kind])
    POLICIES[policy]().apply(model)
    losses, gradients = train(model, autocast=autocast)
    assert losses[0] != losses[1]
    assert all(map(torch.equal, losses, expected_losses))
    assert gradients.keys() == expected.keys()
    assert all(gradient.any() for gradient in gradients.values() if gradient.ndim == 2)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name


def test_dropout_was_on() -> None:
    """Without it the test above would be about less."""
    assert not torch.equal(train(new_model())[0][0], train(new_model(dropout=0.0))[0][0])


# How graphs are cut and what backward keeps is the same with all backends; the default one compiles for a minute.
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.heavy)]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # PyTorch's own compiler warns
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["every_n", "selective", "offload", "full"])
def test_compiled_losses_and_gradients(policy: str, backend: str) -> None:
    """Blocks are compiled after the policy was applied. Dropout is off: a compiled one draws other numbers."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    expected_losses, expected = train(new_model(dropout=0.0))
    model = new_model(dropout=0.0)
    POLICIES[policy]().apply(model)
    for block in model.stack.blocks:
        block.compile(backend=backend)
    losses, gradients = train(model)
    torch.testing.assert_close(losses, expected_losses, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == (2 if policy == "every_n" else 1)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("policy", POLICIES)
def test_names_in_state_dicts_stay(policy: str) -> None:
    model = new_model()
    names = list(model.state_dict())
    POLICIES[policy]().apply(model)
    assert list(model.state_dict()) == names
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in new_model().named_parameters()]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_copy_of_a_model_has_weights_of_its_own(policy: str) -> None:
    model = new_model(dropout=0.0)
    POLICIES[policy]().apply(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    expected = train(new_model(dropout=0.0))
    losses, gradients = train(twin)
    assert losses == expected[0]
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected[1].items())


@pytest.mark.parametrize("policy", POLICIES)
def test_evaluation_is_the_same(policy: str) -> None:
    model = new_model().eval()
    expected = model(tokens(0))
    POLICIES[policy]().apply(model)
    assert torch.equal(model(tokens(0)), expected)
    with torch.no_grad():
        assert torch.equal(model(tokens(0)), expected)


@pytest.mark.parametrize(
    "make, words",
    [
        (partial(RecomputeEvery, n=0), "checkpointing.n is 0"),
        (partial(Selective, save=["mmm"]), "checkpointing.save has mmm"),
    ],
)
def test_impossible_values_are_refused(make: Callable[[], CheckpointingPolicy], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
