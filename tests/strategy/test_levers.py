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


# DeepSpeed compiles the optimizer for this, which takes minutes.
OFFLOADED = {"deepspeed_zero1": {"+offload_optimizer.device": "cpu", "+offload_optimizer.pin_memory": False}}


def trained(folder, options):
    cases = []
    for strategy, levers in options.items():
        typed = [f"{'+' * key.startswith('+')}{SECTION}.{key.lstrip('+')}={value}" for key, value in levers.items()]
        cases.append({"action": "typed", "overrides": [f"strategy={strategy}", *typed]})
    return dict(zip(options, run(folder, 2, cases), strict=True))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("levers"), LEVERS)


@pytest.fixture(scope="module")
def offloaded(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("offloaded"), OFFLOADED)


@pytest.mark.slow
@pytest.mark.parametrize("strategy, key", [(strategy, key) for strategy, levers in LEVERS.items() for key in levers])
def test_what_is_typed_is_what_the_engine_has(results, strategy, key):
    assert section(results[strategy], key) == LEVERS[strategy][key]


def section(result, key):
    found = result["section"]
    for name in key.lstrip("+").split("."):
        found = found[name]
    return found


@pytest.mark.slow
def test_levers_change_no_loss(results):
    assert results["deepspeed_zero1"]["losses"] == pytest.approx(results["deepspeed_zero3"]["losses"], rel=1e-5)
    assert results["deepspeed_zero3_offload"]["losses"] == pytest.approx(results["deepspeed_zero3"]["losses"], rel=1e-5)


@pytest.mark.slow
def test_the_optimizer_follows_what_is_typed(results):
    """Not what the option is named."""
    assert results["deepspeed_zero3_offload"]["optimizer"] == "AdamW"


@pytest.mark.heavy
def test_the_optimizer_for_cpus_is_that_of_a_state_kept_there(offloaded, results):
    result = offloaded["deepspeed_zero1"]
    assert {key: section(result, key) for key in OFFLOADED["deepspeed_zero1"]} == OFFLOADED["deepspeed_zero1"]
    assert result["optimizer"] == "DeepSpeedCPUAdam"
    assert result["losses"] == pytest.approx(results["deepspeed_zero3"]["losses"], rel=1e-5)
