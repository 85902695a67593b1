"""Two processes under each strategy train to the same numbers as one: real processes, ragged batches, float32.

Gradient descent shows a wrong scale of the gradients, which Adam would hide. The eps of AdamW is 1e-6, since a smaller
one makes steps of rounding errors where the true gradient is zero.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "worker.py"
SGD = {"optimizer": "sgd", "arguments": {"lr": 0.5}}
ADAMW = {"optimizer": "adamw", "arguments": {"lr": 0.01, "eps": 1e-6}}
CASES = {
    "sgd": SGD,
    "sgd, 4 micro-batches": SGD | {"accumulation": 4},
    "sgd, 2 micro-batches, clipped": SGD | {"accumulation": 2, "clip": 0.2},
    "adamw, 2 micro-batches, clipped": ADAMW | {"accumulation": 2, "clip": 0.2},
    "adamw, adapters": ADAMW | {"rank": 4},
}
STRATEGIES = ["ddp", "fsdp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"]


def run(folder, ranks, cases, environment=None):
    """The results of the cases from `ranks` processes, which meet at a free port."""
    output = folder / f"{ranks}.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])} | (environment or {})
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    command = [sys.executable, WORKER, output, json.dumps([case | {"ranks": ranks} for case in cases])]
    errors = [(folder / f"{ranks}-{rank}.err").open("w+") for rank in range(ranks)]
    processes = [
        subprocess.Popen(command, env=shared | {"LOCAL_RANK": str(rank)}, stdout=errors[rank], stderr=errors[rank])
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            process.wait(timeout=900)
    finally:
        for process in processes:
            process.kill()
    for process, error in zip(processes, errors, strict=True):
        error.seek(0)
        text = error.read()
        error.close()
        assert process.returncode == 0, text[-4000:]
        assert "Warning" not in text, text
    return torch.load(output)


def one_process(cases):
    return [case | {"strategy": "auto", "accumulation": 1} for case in cases]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process and two did, by strategy and case."""
    folder = tmp_path_factory.mktemp("engines")
    found = {
        ("auto", name): result for name, result in zip(CASES, run(folder, 1, one_process(CASES.values())), strict=True)
    }
    keys = [(strategy, name) for strategy in STRATEGIES for name in CASES]
    two = run(folder, 2, [CASES[name] | {"strategy": strategy} for strategy, name in keys])
    return found | dict(zip(keys, two, strict=True))


def assert_same(one, two):
    assert two["rates"] == one["rates"]
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-5, atol=0)
    torch.testing.assert_close(two["norms"], one["norms"], rtol=1e-5, atol=0)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_train_as_one(results, strategy, case):
    one, two = results["auto", case], results[strategy, case]
    assert one["losses"][-1] < 0.95 * one["losses"][0]
    assert_same(one, two)


@pytest.mark.slow
def test_weights_are_in_shards_where_the_strategy_says_so(results):
    whole = results["auto", "sgd"]["held"]
    for strategy in STRATEGIES:
        share = results[strategy, "sgd"]["held"] / whole
        assert share == pytest.approx(0.5 if strategy in ("fsdp", "deepspeed_zero3") else 1.0, abs=0.01)


@pytest.mark.slow
def test_muon_works_on_whole_matrices(tmp_path):
    """Bit for bit: the same batch in each process gives the gradients of one process, and shards change nothing then.

    With different batches gradients differ by rounding, which Muon's five iterations in bfloat16 make larger.
    """
    muon = {"optimizer": "Muon", "arguments": {"lr": 0.01}}
    (one,) = run(tmp_path, 1, one_process([muon]))
    for two in run(tmp_path, 2, [muon | {"strategy": strategy, "alike": True} for strategy in ("ddp", "fsdp")]):
        assert all(torch.equal(two["weights"][name], weight) for name, weight in one["weights"].items())


@pytest.mark.slow
def test_offload_without_a_compiler(tmp_path):
    """torch's AdamW serves where DeepSpeed's for CPUs cannot be compiled, and one line says so."""
    case = ADAMW | {"accumulation": 2, "clip": 0.2}
    (one,) = run(tmp_path, 1, one_process([case]))
    no_compiler = {"PATH": "/nowhere", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    (two,) = run(tmp_path, 2, [case | {"strategy": "deepspeed_zero3_offload"}], no_compiler)
    assert two["optimizer"] == "AdamW"
    assert_same(one, two)
    assert "torch's AdamW, since DeepSpeed's for CPUs cannot be compiled" in (tmp_path / "2-0.err").read_text()


@pytest.mark.slow
def test_offload_with_deepspeeds_adam(tmp_path):
    (one,) = run(tmp_path, 1, one_process([ADAMW | {"clip": 0.2}]))
    (two,) = run(tmp_path, 2, [ADAMW | {"clip": 0.2, "strategy": "deepspeed_zero3_offload"}])
    assert two["optimizer"] == "DeepSpeedCPUAdam"
    assert_same(one, two)


@pytest.mark.slow
def test_half_precision_follows_full_precision(tmp_path):
    """Engines cast differently, so bfloat16 is compared loosely: the loss falls alike."""
    mixed, true = (ADAMW | {"precision": precision} for precision in ("bf16-mixed", "bf16-true"))
    (one,) = run(tmp_path, 1, one_process([ADAMW]))
    keys = [*((strategy, mixed) for strategy in STRATEGIES), ("ddp", true), ("fsdp", true), ("deepspeed_zero3", true)]
    for two in run(tmp_path, 2, [case | {"strategy": strategy} for strategy, case in keys]):
        torch.testing.assert_close(two["losses"], one["losses"], rtol=0.03, atol=0)
