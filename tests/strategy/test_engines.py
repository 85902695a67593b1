"""Two processes under each strategy train to the same numbers as one: real processes, ragged batches, float32."""

import pytest
import torch

from tests.strategy.cases import ALL, CASES, STRATEGIES, differences, run, train

CLIPPED = "adamw, 2 micro-batches, clipped"
MUON = {"optimizer": "Muon", "arguments": {"lr": 0.01}}
HALVES = [(strategy, "bf16-mixed") for strategy in STRATEGIES]
HALVES += [(strategy, "bf16-true") for strategy in ("ddp", "fsdp", "deepspeed_zero3")]
# Stage 1 is stage 2 that keeps its gradients whole: one case is quick, and the rest is heavy. Offload is stage 3 with
# another optimizer, which DeepSpeed compiles for minutes: all of it is heavy.
OFFLOAD = "deepspeed_zero3_offload"
LIKE_OTHERS = ["deepspeed_zero1", OFFLOAD]
MORE = {
    key: case for key, case in ALL.items() if key[0] == OFFLOAD or (key[0] == "deepspeed_zero1" and key[1] != CLIPPED)
}
QUICK = [strategy for strategy in STRATEGIES if strategy != OFFLOAD]
MORE_HALVES = [key for key in HALVES if key[0] in LIKE_OTHERS]


def halves(keys):
    return {key: CASES[CLIPPED] | {"accumulation": 1, "precision": key[1]} for key in keys}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process and two did, by strategy and case."""
    cases = {key: case for key, case in ALL.items() if key not in MORE}
    cases |= {("auto", "muon"): MUON} | {(strategy, "muon"): MUON | {"alike": True} for strategy in ("ddp", "fsdp")}
    cases |= halves(key for key in HALVES if key not in MORE_HALVES)
    return train(tmp_path_factory.mktemp("engines"), cases)


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """The rest of it."""
    alone = {key: case for key, case in ALL.items() if key[0] == "auto"}
    return train(tmp_path_factory.mktemp("more"), alone | MORE | halves(MORE_HALVES))


def assert_same(one, two):
    assert two["rates"] == one["rates"]
    assert len(two["losses"]) == len(one["losses"]) == 20
    assert max(differences(one, two).values()) < 1e-5


def check(results, strategy, case):
    one, two = results["auto", case], results[strategy, case]
    assert one["losses"][-1] < 0.95 * one["losses"][0]
    assert_same(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("strategy, case", [key for key in ALL if key[0] != "auto" and key not in MORE])
def test_two_processes_train_as_one(results, strategy, case):
    check(results, strategy, case)


@pytest.mark.heavy
@pytest.mark.parametrize("strategy, case", MORE)
def test_two_processes_train_as_one_where_engines_are_alike(more, strategy, case):
    check(more, strategy, case)


@pytest.mark.slow
def test_weights_are_in_shards_where_the_strategy_says_so(results):
    whole = results["auto", CLIPPED]["held"]
    for strategy in QUICK:
        share = results[strategy, CLIPPED]["held"] / whole
        assert share == pytest.approx(0.5 if strategy in ("fsdp", "deepspeed_zero3") else 1.0, abs=0.01)


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
    cases = [CASES[CLIPPED] | {"strategy": OFFLOAD}, {"action": "typed", "overrides": by_hand}]
    two, typed = run(tmp_path, 2, cases, no_compiler)
    assert two["optimizer"] == typed["optimizer"] == "AdamW"
    assert_same(results["auto", CLIPPED], two)
    assert "torch's AdamW, since DeepSpeed's for CPUs cannot be compiled" in (tmp_path / "2-0.err").read_text()


@pytest.mark.slow
def test_each_strategy_runs_the_optimizer_that_suits_it(results):
    for strategy in QUICK:
        assert results[strategy, CLIPPED]["optimizer"] == "AdamW"


@pytest.mark.heavy
def test_offload_runs_the_optimizer_for_cpus_and_has_weights_in_shards(more):
    offloaded = more[OFFLOAD, CLIPPED]
    assert offloaded["optimizer"] == "DeepSpeedCPUAdam"
    assert offloaded["held"] / more["auto", CLIPPED]["held"] == pytest.approx(0.5, abs=0.01)


def check_half(results, strategy, precision):
    """Engines cast differently, so bfloat16 is compared loosely: the loss falls alike."""
    one, two = results["auto", CLIPPED], results[strategy, precision]
    torch.testing.assert_close(two["losses"], one["losses"], rtol=0.03, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("strategy, precision", [key for key in HALVES if key not in MORE_HALVES])
def test_half_precision_follows_full_precision(results, strategy, precision):
    check_half(results, strategy, precision)


@pytest.mark.heavy
@pytest.mark.parametrize("strategy, precision", MORE_HALVES)
def test_half_precision_follows_where_engines_are_alike(more, strategy, precision):
    check_half(more, strategy, precision)
