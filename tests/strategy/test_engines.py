"""Two processes under each strategy train to the same numbers as one: real processes, ragged batches, float32."""

import pytest
import torch

from tests.strategy.cases import ALL, CASES, STRATEGIES, differences, run, train

CLIPPED = "adamw, 2 micro-batches, clipped"
MUON = {"optimizer": "Muon", "arguments": {"lr": 0.01}}
HALVES = [(strategy, "bf16-mixed") for strategy in STRATEGIES]
HALVES += [(strategy, "bf16-true") for strategy in ("ddp", "fsdp", "deepspeed_zero3")]
OTHERS = {
    ("auto", "muon"): MUON,
    ("ddp", "muon"): MUON | {"alike": True},
    ("fsdp", "muon"): MUON | {"alike": True},
} | {key: CASES[CLIPPED] | {"accumulation": 1, "precision": key[1]} for key in HALVES}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process and two did, by strategy and case."""
    return train(tmp_path_factory.mktemp("engines"), ALL | OTHERS)


def assert_same(one, two):
    assert two["rates"] == one["rates"]
    assert len(two["losses"]) == len(one["losses"]) == 20
    assert max(differences(one, two).values()) < 1e-5


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
        assert share == pytest.approx(0.5 if strategy == "fsdp" or "zero3" in strategy else 1.0, abs=0.01)


@pytest.mark.slow
def test_muon_works_on_whole_matrices(results):
    """Bit for bit: the same batch in each process gives the gradients of one process, and shards change nothing then.

    With different batches gradients differ by rounding, which Muon's five iterations in bfloat16 make larger.
    """
    for strategy in ("ddp", "fsdp"):
        for name, weight in results["auto", "muon"]["weights"].items():
            assert torch.equal(results[strategy, "muon"]["weights"][name], weight)


@pytest.mark.slow
def test_offload_without_a_compiler(results, tmp_path):
    """torch's AdamW serves where DeepSpeed's for CPUs cannot be compiled, and one line says so."""
    no_compiler = {"PATH": "/nowhere", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    by_hand = ["strategy=deepspeed_zero2", "+strategy.zero_optimization.offload_optimizer.device=cpu"]
    cases = [CASES[CLIPPED] | {"strategy": "deepspeed_zero3_offload"}, {"action": "typed", "overrides": by_hand}]
    two, typed = run(tmp_path, 2, cases, no_compiler)
    assert two["optimizer"] == typed["optimizer"] == "AdamW"
    assert_same(results["auto", CLIPPED], two)
    assert "torch's AdamW, since DeepSpeed's for CPUs cannot be compiled" in (tmp_path / "2-0.err").read_text()


@pytest.mark.slow
def test_each_strategy_runs_the_optimizer_that_suits_it(results):
    for strategy in STRATEGIES:
        kind = "DeepSpeedCPUAdam" if strategy == "deepspeed_zero3_offload" else "AdamW"
        assert results[strategy, CLIPPED]["optimizer"] == kind


@pytest.mark.slow
@pytest.mark.parametrize("strategy, precision", HALVES)
def test_half_precision_follows_full_precision(results, strategy, precision):
    """Engines cast differently, so bfloat16 is compared loosely: the loss falls alike."""
    one, two = results["auto", CLIPPED], results[strategy, precision]
    torch.testing.assert_close(two["losses"], one["losses"], rtol=0.03, atol=0)
