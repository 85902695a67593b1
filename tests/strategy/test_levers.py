"""DeepSpeed's own keys, typed on the command line, reach its engine."""

import pytest

from tests.strategy.cases import run

SECTION = "strategy.zero_optimization"
# As typed, and as the engine must have it. Each differs from the file's value and from DeepSpeed's default.
LEVERS = {
    "deepspeed_zero1": {
        "stage": 2,
        "overlap_comm": False,
        "contiguous_gradients": False,
        "reduce_bucket_size": 1000,
        "allgather_bucket_size": 2000,
        "+round_robin_gradients": True,
        "+offload_optimizer.device": "cpu",
        "+offload_optimizer.pin_memory": False,
    },
    "deepspeed_zero3": {
        "overlap_comm": False,
        "reduce_bucket_size": 1000,
        "stage3_param_persistence_threshold": 10,
        "stage3_prefetch_bucket_size": 3000,
        "stage3_max_live_parameters": 4000,
        "sub_group_size": 5000,
        "+stage3_max_reuse_distance": 6000,
        "+zero_hpz_partition_size": 2,
    },
    "deepspeed_zero3_offload": {
        "offload_optimizer.device": "none",
        "offload_param.pin_memory": False,
        "+offload_param.max_in_cpu": 7000,
    },
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    cases = []
    for strategy, levers in LEVERS.items():
        typed = [f"{'+' * key.startswith('+')}{SECTION}.{key.lstrip('+')}={value}" for key, value in levers.items()]
        cases.append({"action": "typed", "overrides": [f"strategy={strategy}", *typed]})
    return dict(zip(LEVERS, run(tmp_path_factory.mktemp("levers"), 2, cases), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("strategy, key", [(strategy, key) for strategy, levers in LEVERS.items() for key in levers])
def test_what_is_typed_is_what_the_engine_has(results, strategy, key):
    found = results[strategy]["section"]
    for name in key.lstrip("+").split("."):
        found = found[name]
    assert found == LEVERS[strategy][key]


@pytest.mark.slow
def test_levers_change_no_loss(results):
    assert results["deepspeed_zero1"]["losses"] == pytest.approx(results["deepspeed_zero3"]["losses"], rel=1e-5)
    assert results["deepspeed_zero3_offload"]["losses"] == pytest.approx(results["deepspeed_zero3"]["losses"], rel=1e-5)


@pytest.mark.slow
def test_the_optimizer_follows_what_is_typed(results):
    """The one for CPUs where its state is kept there, whatever the option was named."""
    assert results["deepspeed_zero1"]["optimizer"] == "DeepSpeedCPUAdam"
    assert results["deepspeed_zero3_offload"]["optimizer"] == "AdamW"
