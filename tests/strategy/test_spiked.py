"""A step that is left out is as if its batch had not been there, under each strategy on two processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.strategy import worker
from tests.strategy.spiked import is_poisoned
from txtrain.data.loader import StepLoader

pytestmark = pytest.mark.heavy  # tests/test_spikes.py shows it on one process

SCRIPT = Path(__file__).parent / "spiked.py"
STRATEGIES = ["ddp", "fsdp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3", "deepspeed_zero3_offload"]
ADAMW = {"optimizer": "adamw", "arguments": {"lr": 0.01, "eps": 1e-6}, "clip": 0.2}
CASES = {
    "finite": ADAMW | {"factor": "1e4"},
    "finite, 2 micro-batches": ADAMW | {"factor": "1e4", "accumulation": 2},
    "not a number": ADAMW | {"factor": "nan", "accumulation": 2},
}


def run(folder, ranks, cases):
    """The results of the cases from `ranks` processes."""
    output = folder / f"{ranks}.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    command = [sys.executable, SCRIPT, output, json.dumps([case | {"ranks": ranks} for case in cases])]
    processes = [
        subprocess.Popen(
            command, env=shared | {"LOCAL_RANK": str(rank)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for rank in range(ranks)
    ]
    try:
        errors = [process.communicate(timeout=900)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(error[-4000:] for error in errors)
    return torch.load(output)


def without_the_batch():
    """Weights after each step of a plain loop that goes past the poisoned batches, but for the schedule."""
    task = worker.new_task("adamw", ADAMW["arguments"])
    torch.manual_seed(0)
    model = task.model = task.build_model()
    optimizer = task.new_optimizer(model)
    loader = StepLoader(worker.Ragged(), batch_size=worker.BATCH, micro=worker.BATCH, accumulation=1)
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
    folder = tmp_path_factory.mktemp("spiked")
    one = run(folder, 1, [case | {"strategy": "auto"} for case in CASES.values()])
    keys = [(strategy, name) for strategy in STRATEGIES for name in CASES]
    two = run(folder, 2, [CASES[name] | {"strategy": strategy} for strategy, name in keys])
    return {("auto", name): result for name, result in zip(CASES, one, strict=True)} | dict(zip(keys, two, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_a_step_left_out_changes_nothing(results, expected, strategy, case):
    result = results[strategy, case]
    left_out = [step for step in range(1, worker.STEPS + 1) if is_poisoned(step)]
    assert result["skipped_steps"] == len(left_out) > 1
    after = result["weights"]
    for step in range(1, worker.STEPS + 1):
        same = all(torch.equal(after[step][name], weight) for name, weight in after[step - 1].items())
        assert same == (step in left_out), step
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-5)
