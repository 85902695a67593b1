"""Validation counts each sample once on any number of processes: real ones, by the real task, loader and data."""

from pathlib import Path

import pytest

from tests.strategy.cases import run

TEXT = Path(__file__).parents[1] / "golden" / "text.txt"
# No number of windows, and no last batch, that processes could share equally.
SETTINGS = {"path": str(TEXT), "seq_len": 83, "batch_size": 8, "validation_fraction": 0.15}
CASES = {
    "all": {"limit": 1.0},
    "the first batches": {"limit": 3},
    "the first batches, in micro-batches": {"limit": 3, "micro_batch_size": 2},
}
KEYS = [(strategy, name) for strategy in ("ddp", "fsdp", "deepspeed_zero3") for name in CASES]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process, two and three found, by number of processes, strategy and case."""
    folder = tmp_path_factory.mktemp("evaluation")
    common = {"action": "validate", "cache_dir": str(folder / "cache")} | SETTINGS
    found = {}
    for ranks in (1, 2, 3):
        keys = [("auto", name) for name in CASES] if ranks == 1 else KEYS
        outcomes = run(folder, ranks, [common | CASES[name] | {"strategy": strategy} for strategy, name in keys])
        found |= {(ranks, *key): outcome for key, outcome in zip(keys, outcomes, strict=True)}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("strategy, case", KEYS)
def test_each_sample_counts_once(results, ranks, strategy, case):
    one, many = results[1, "auto", case], results[ranks, strategy, case]
    assert sorted(many["index"]) == sorted(one["index"])
    assert len(set(many["index"])) == len(many["index"])
    assert many["targets"] == one["targets"]
    assert many["metrics"].keys() == {"validation/loss", "validation/perplexity", "validation/bits_per_byte"}
    assert many["metrics"] == pytest.approx(one["metrics"], rel=1e-9)


@pytest.mark.slow
def test_the_set_divides_by_no_number_of_processes(results):
    samples = len(results[1, "auto", "all"]["index"])
    assert samples % 2 and samples % 3 and samples % 8
    assert len(results[1, "auto", "the first batches"]["index"]) == 24
