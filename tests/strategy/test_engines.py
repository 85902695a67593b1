"""Two processes under each strategy train to the same numbers as one: real processes, ragged batches, float32."""

import pytest
import torch

from tests.strategy.cases import ADAMW, CASES, STRATEGIES, differences, in_one_process, run, train_all


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return train_all(tmp_path_factory.mktemp("engines"))


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
def test_muon_works_on_whole_matrices(tmp_path):
    """Bit for bit: the same batch in each process gives the gradients of one process, and shards change nothing then.

    With different batches gradients differ by rounding, which Muon's five iterations in bfloat16 make larger.
    """
    muon = {"optimizer": "Muon", "arguments": {"lr": 0.01}}
    (one,) = run(tmp_path, 1, [in_one_process(muon)])
    for two in run(tmp_path, 2, [muon | {"strategy": strategy, "alike": True} for strategy in ("ddp", "fsdp")]):
        assert all(torch.equal(two["weights"][name], weight) for name, weight in one["weights"].items())


@pytest.mark.slow
def test_offload_without_a_compiler(tmp_path):
    """torch's AdamW serves where DeepSpeed's for CPUs cannot be compiled, and one line says so."""
    case = ADAMW | {"accumulation": 2, "clip": 0.2}
    (one,) = run(tmp_path, 1, [in_one_process(case)])
    no_compiler = {"PATH": "/nowhere", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    (two,) = run(tmp_path, 2, [case | {"strategy": "deepspeed_zero3_offload"}], no_compiler)
    assert two["optimizer"] == "AdamW"
    assert_same(one, two)
    assert "torch's AdamW, since DeepSpeed's for CPUs cannot be compiled" in (tmp_path / "2-0.err").read_text()


@pytest.mark.slow
def test_each_strategy_runs_the_optimizer_that_suits_it(results):
    for strategy in STRATEGIES:
        kind = "DeepSpeedCPUAdam" if strategy == "deepspeed_zero3_offload" else "AdamW"
        assert results[strategy, "adamw, adapters"]["optimizer"] == kind


@pytest.mark.slow
def test_half_precision_follows_full_precision(tmp_path):
    """Engines cast differently, so bfloat16 is compared loosely: the loss falls alike."""
    mixed, true = (ADAMW | {"precision": precision} for precision in ("bf16-mixed", "bf16-true"))
    (one,) = run(tmp_path, 1, [in_one_process(ADAMW)])
    keys = [*((strategy, mixed) for strategy in STRATEGIES), ("ddp", true), ("fsdp", true), ("deepspeed_zero3", true)]
    for two in run(tmp_path, 2, [case | {"strategy": strategy} for strategy, case in keys]):
        torch.testing.assert_close(two["losses"], one["losses"], rtol=0.03, atol=0)
