"""What is trained under every strategy, in real processes, and how far it comes from one process."""

import json
import os
import socket
import sys
from pathlib import Path

import torch

from tests import forked

WORKER = Path(__file__).parent / "worker.py"
# Gradient descent shows a wrong scale of the gradients, which Adam would hide. The eps of AdamW is 1e-6, since a
# smaller one makes steps of rounding errors where the true gradient is zero.
SGD = {"optimizer": "sgd", "arguments": {"lr": 0.1}}
ADAMW = {"optimizer": "adamw", "arguments": {"lr": 0.01, "eps": 1e-6}}
CASES = {
    "sgd": SGD,
    "sgd, 2 micro-batches, clipped, every second block recomputed": SGD
    | {"accumulation": 2, "clip": 0.2, "checkpointing": "every_n"},
    "sgd, products and attention kept": SGD | {"checkpointing": "selective"},
    "sgd, activations moved to the CPU": SGD | {"checkpointing": "offload"},
    "adamw, 2 micro-batches, clipped": ADAMW | {"accumulation": 2, "clip": 0.2},
    "adamw, adapters, 2 micro-batches, all blocks recomputed": ADAMW
    | {"lora": {"rank": 4}, "accumulation": 2, "checkpointing": "full"},
    "adamw, adapters of a base in 4 bits, 2 micro-batches, every second block recomputed": {
        "optimizer": "adamw",
        "arguments": {"lr": 0.015, "eps": 1e-3},
        "lora": {"rank": 16, "base_dtype": "nf4"},
        "accumulation": 2,
        "checkpointing": "every_n",
    },
}
STRATEGIES = ["ddp", "fsdp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3", "deepspeed_zero3_offload"]


def in_one_process(case):
    """The same steps with nothing shared out, divided or computed twice."""
    return case | {"accumulation": 1, "checkpointing": "none"}


ALL = {("auto", name): in_one_process(case) for name, case in CASES.items()} | {
    (strategy, name): case for strategy in STRATEGIES for name, case in CASES.items()
}


def train(folder, cases, script=WORKER):
    """The results of cases by strategy and name: `auto` in one process, the others in two."""
    results = {}
    for ranks, keys in (1, [key for key in cases if key[0] == "auto"]), (2, [key for key in cases if key[0] != "auto"]):
        outcomes = run(folder, ranks, [cases[key] | {"strategy": key[0]} for key in keys], script=script)
        results |= dict(zip(keys, outcomes, strict=True))
    return results


def run(folder, ranks, cases, environment=None, script=WORKER):
    """The results of the cases from `ranks` processes, which meet at a free port."""
    output = folder / f"{ranks}.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])} | (environment or {})
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    command = [sys.executable, script, output, json.dumps([case | {"ranks": ranks} for case in cases])]
    logs = [folder / f"{ranks}-{rank}.err" for rank in range(ranks)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            environment = shared | {"LOCAL_RANK": str(rank)}
            processes.append(forked.start(command, cwd=folder, env=environment, stdout=file, stderr=file))
    try:
        for process in processes:
            process.wait(timeout=900)
    finally:
        for process in processes:
            process.kill()
    told = "\n".join(log.read_text()[-4000:] for log in logs)  # of all: whose error came first is not known
    assert [process.returncode for process in processes] == [0] * ranks, told
    assert not any("Warning" in log.read_text() for log in logs), told
    return torch.load(output)


def differences(one, two):
    """The largest over all steps, relative, of losses and gradient norms; the largest of final weights, absolute."""
    relative = {
        name: max(abs(b - a) / abs(a) for a, b in zip(one[name], two[name], strict=True))
        for name in ("losses", "norms")
    }
    weights = max((two["weights"][name] - weight).abs().max().item() for name, weight in one["weights"].items())
    return relative | {"weights": weights}
