"""A step that is left out is as if its batch had not been there, under each strategy on two processes."""

from pathlib import Path

import pytest
import torch

from tests.strategy import worker
from tests.strategy.cases import STRATEGIES, train
from tests.strategy.spiked import ORDER, is_poisoned
from txtrain.data.loader import StepLoader

SCRIPT = Path(__file__).parent / "spiked.py"
ADAMW = {"optimizer": "adamw", "arguments": {"lr": 0.01, "eps": 1e-6}, "clip": 0.2}
CASES = {
    "finite": ADAMW | {"factor": "1e4"},
    "finite, 2 micro-batches": ADAMW | {"factor": "1e4", "accumulation": 2},
    "not a number": ADAMW | {"factor": "nan", "accumulation": 2},
    "gradient": ADAMW | {"factor": None},
}
# The engines whose steps differ, with what they are told to do of gradients that are not finite under a finite loss.
GRADIENTS = {
    (strategy, on_spike): ADAMW | {"factor": None, "on_spike": on_spike}
    for strategy in ("ddp", "fsdp", "deepspeed_zero2", "deepspeed_zero3")
    for on_spike in ("skip", "stop", "warn")
    if strategy.startswith("deepspeed") or on_spike == "stop"  # else a warning is all, and weights are lost
}
GRADIENTS["deepspeed_zero2", "bf16"] = ADAMW | {"factor": None, "on_spike": "warn", "precision": "bf16-true"}
ALL = {(strategy, name): case for strategy in ("auto", *STRATEGIES) for name, case in CASES.items()}


def without_the_batch():
    """Weights after each step of a plain loop that goes past the poisoned batches, but for the schedule."""
    task = worker.new_task("adamw", ADAMW["arguments"])
    torch.manual_seed(0)
    model = task.model = task.build_model()
    optimizer = task.new_optimizer(model)
    loader = StepLoader(worker.Ragged(), order=ORDER, micro=worker.BATCH, accumulation=1)
    weights = [{name: parameter.detach().clone() for name, parameter in model.named_parameters()}]
    while len(weights) <= worker.STEPS:
        step = len(weights)
        loader.set_epoch((step - 1) // loader.steps)
        for batch in loader:
            if len(weights) > worker.STEPS:
                break
            if not is_poisoned(len(weights)):
                for group in optimizer.param_groups:
                    group["lr"] = 0.01 * task.schedule.scale(len(weights) - 1, worker.STEPS)
                objective, _ = task.losses(batch)
                (objective / batch["step_tokens"]).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW["clip"])
                optimizer.step()
                optimizer.zero_grad()
            weights.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    return weights


@pytest.fixture(scope="module")
def expected():
    return without_the_batch()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process and two did, by strategy and case."""
    return train(tmp_path_factory.mktemp("spiked"), ALL, script=SCRIPT)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    return train(tmp_path_factory.mktemp("gradients"), GRADIENTS, script=SCRIPT)


def poisoned_steps():
    return [step for step in range(1, worker.STEPS + 1) if is_poisoned(step)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy, on_spike", GRADIENTS)
def test_gradients_that_are_not_finite_are_counted_and_obeyed(gradients, strategy, on_spike):
    result, left_out = gradients[strategy, on_spike], poisoned_steps()
    if on_spike == "stop":
        assert result["stopped"] == f"on_spike=stop at step {left_out[0]}"
        assert (result["steps"], result["skipped_steps"]) == (left_out[0], 1)
    else:
        assert result["stopped"] is None
        assert (result["steps"], result["skipped_steps"]) == (worker.STEPS, len(left_out))
    for weight in result["weights"][-1].values():
        assert torch.isfinite(weight).all()


@pytest.mark.heavy  # tests/test_spikes.py shows it on one process
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_a_step_left_out_changes_nothing(results, expected, strategy, case):
    result = results[strategy, case]
    left_out = poisoned_steps()
    assert result["skipped_steps"] == len(left_out) > 1
    after = result["weights"]
    for step in range(1, worker.STEPS + 1):
        same = all(torch.equal(after[step][name], weight) for name, weight in after[step - 1].items())
        assert same == (step in left_out), step
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-5)
