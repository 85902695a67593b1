"""Real runs that go on with other devices, or under another strategy, than they began with.

With dropout off the losses are those of a run that never stopped. The eps of AdamW is 1e-6, since a smaller one makes
steps of rounding errors where the true gradient is zero.
"""

from pathlib import Path

import pytest
import torch

from tests.test_resume import ONE, TINY, TWO, finish, rows
from txtrain.saving import WEIGHT, Reader, list_checkpoints

SETTINGS = [*TINY, "model.dropout=0", "optimizer.eps=1e-6", "schedule=constant", "schedule.warmup=2", "save.every=6"]
SETTINGS.append("trainer.limit_val_batches=1.0")
SHARDED = "strategy.zero_optimization.stage3_param_persistence_threshold=0"  # else weights this small stay whole
RUNS = {
    "auto": [*ONE, "strategy=auto"],
    "ddp": [*TWO, "strategy=ddp"],
    "fsdp": [*TWO, "strategy=fsdp"],
    "deepspeed_zero1": [*TWO, "strategy=deepspeed_zero1"],
    "deepspeed_zero2": [*TWO, "strategy=deepspeed_zero2"],
    "deepspeed_zero2 on 1": [*ONE, "strategy=deepspeed_zero2"],
    "deepspeed_zero3": [*TWO, "strategy=deepspeed_zero3", SHARDED],
    "deepspeed_zero3_offload": [*TWO, "strategy=deepspeed_zero3_offload", SHARDED],
}
CHANGES = [
    ("auto", "ddp", []),
    ("deepspeed_zero3", "auto", ["lora.rank=4"]),
]
MORE_CHANGES = [
    ("ddp", "fsdp", []),
    ("deepspeed_zero2", "deepspeed_zero3", []),
    ("ddp", "auto", []),
    ("fsdp", "deepspeed_zero1", []),
    ("deepspeed_zero1", "deepspeed_zero2 on 1", []),
    ("deepspeed_zero2", "deepspeed_zero3", ["lora.rank=4"]),
    ("deepspeed_zero3", "auto", []),
    ("auto", "deepspeed_zero3_offload", []),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run of 12 steps that never stopped."""
    folder = tmp_path_factory.mktemp("elastic")
    finish(folder, "run_dir=whole", *SETTINGS, *RUNS["auto"])
    return folder


def losses(run_dir: Path) -> dict[tuple[int, str], float]:
    return {
        (row["step"], name): row[name]
        for row in rows(run_dir)
        for name in ("train/loss", "train/grad_norm", "validation/loss", "train/tokens")
        if name in row and (row["step"], name) != (6, "validation/loss")  # the end of the first part
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after, adapters",
    [*CHANGES, *(pytest.param(*change, marks=pytest.mark.heavy) for change in MORE_CHANGES)],
)
def test_a_run_goes_on_otherwise(folder: Path, before: str, after: str, adapters: list[str]) -> None:
    pytest.importorskip("deepspeed")
    run_dir = folder / f"{before} to {after} {len(adapters)}"
    whole = folder / "whole"
    if adapters:
        whole = folder / "adapted"
        if not whole.exists():
            finish(folder, f"run_dir={whole}", *SETTINGS, *RUNS["auto"], *adapters)
    finish(folder, f"run_dir='{run_dir}'", *SETTINGS, *RUNS[before], *adapters, "trainer.max_steps=6")
    finish(folder, f"resume='{run_dir}'", "trainer.max_steps=12", *RUNS[after])
    assert losses(run_dir) == pytest.approx(losses(whole), rel=1e-5)
    ends = [Reader(list_checkpoints(path / "checkpoints")[0]) for path in (whole, run_dir)]
    for name in ends[0].names(WEIGHT):
        torch.testing.assert_close(ends[1][name], ends[0][name], rtol=0, atol=1e-5)
    names = {True: "deepspeed_zero3", False: before}
    line = f"Checkpoint of strategy={names[before.startswith('deepspeed_zero3')].split()[0]} on "
    assert line in (run_dir / "train.log").read_text()
