"""Real runs whose checkpoints hold adapters only: they go on exactly, and with the weights that they adapt only."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.test_resume import ONE, TINY, TWO, end_of, finish, rows, start
from txtrain.saving import BASE, WEIGHT, Part, Reader, list_checkpoints, read_manifest, read_state, write_manifest

# What follows from the run that is adapted is left out.
ADAPT = [setting for setting in TINY if not setting.startswith(("model.", "tokenizer="))]
SHARDED = "strategy.zero_optimization.stage3_param_persistence_threshold=0"  # else weights this small stay whole
RUNS = {
    "one": ONE,
    "deepspeed_zero3": [*TWO, "strategy=deepspeed_zero3", SHARDED],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a trained model to adapt."""
    folder = tmp_path_factory.mktemp("adapted")
    finish(folder, "run_dir=trained", *TINY, *ONE, "trainer.max_steps=4", "save.every=4")
    return folder


def forget_the_end(run_dir: Path) -> None:
    """As if the run had been killed before its seventh step."""
    for path in list_checkpoints(run_dir / "checkpoints")[:-1]:
        shutil.rmtree(path)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    reader = Reader(list_checkpoints(run_dir / "checkpoints")[0])
    return {name: reader[name] for name in reader.names(WEIGHT)}


def alter(checkpoint: Path) -> None:
    """Another weight, and a manifest that fits."""
    (file,) = checkpoint.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model/stack.norm.final.weight"] += 1
    save_file(tensors, file)
    manifest = read_manifest(checkpoint)
    parts = [Part.of(checkpoint / part.name) for part in manifest["files"]]
    write_manifest(checkpoint, step=manifest["step"], ranks=1, strategy="auto", parts=parts)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["one", pytest.param("deepspeed_zero3", marks=pytest.mark.heavy)])
def test_adapters_alone_go_on_exactly(folder: Path, strategy: str) -> None:
    """And are refused where the weights are others."""
    whole, parts = folder / f"{strategy} whole", folder / f"{strategy} parts"
    adapt = [*ADAPT, "init_from=trained", "lora.rank=4", "model.dropout=0.1", "save.every=6", "save.keep=9"]
    finish(folder, f"run_dir='{whole}'", *adapt, *RUNS[strategy])
    shutil.copytree(whole, parts, symlinks=True)
    forget_the_end(parts)
    finish(folder, f"resume='{parts}'")
    ends = end_of(whole), end_of(parts)
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert rows(whole) == rows(parts)
    assert {name.rpartition(".")[2] for name in weights(whole)} == {"lora_A", "lora_B"}
    base = read_state(list_checkpoints(whole / "checkpoints")[0])["base"]
    assert base["path"] == str((folder / "trained/checkpoints/best").resolve())
    if strategy == "one":
        forget_the_end(parts)
        shutil.copytree(folder / "trained", folder / "kept", symlinks=True)
        alter(Path(base["path"]))
        assert start(folder, f"resume='{parts}'").wait(timeout=240) == 1
        assert start(folder, "init_from='one whole'", "run_dir=next", *ADAPT).wait(timeout=240) == 1
        shutil.rmtree(folder / "trained")
        (folder / "kept").rename(folder / "trained")
        lines = [line for line in (folder / "output.txt").read_text().splitlines() if line.startswith("error: ")]
        assert "are not those that the adapters were trained on" in lines[-2]
        assert "has adapters of other weights than those in" in lines[-1]


@pytest.mark.slow
def test_frozen_weights_with_no_other_home_are_written_once(folder: Path) -> None:
    """From scratch: embeddings and norms train, and the random weights under the adapters never change."""
    run_dir = folder / "scratch"
    settings = [*TINY, *ONE, "lora.rank=4", "save.every=6", "save.keep=9"]
    finish(folder, f"run_dir={run_dir}", *settings)
    whole, ended = end_of(run_dir), rows(run_dir)
    assert "model/embedding.tokens.weight" in weights(run_dir)
    base = set(Reader(run_dir / "checkpoints" / BASE).names())
    assert "model/stack.blocks.0.attention.q_proj.weight" in base
    assert not base & whole.keys()
    forget_the_end(run_dir)
    finish(folder, f"resume={run_dir}")
    assert all(torch.equal(tensor, end_of(run_dir)[name]) for name, tensor in whole.items())
    assert rows(run_dir) == ended
    finish(folder, f"init_from={run_dir}", "run_dir=chained", "lora.rank=2", "trainer.max_steps=1", *ADAPT)
    shutil.rmtree(run_dir / "checkpoints" / BASE)
    assert start(folder, f"resume={run_dir}", "trainer.max_steps=14").wait(timeout=240) == 1
    assert (
        f"error: checkpoint {run_dir}/checkpoints/{BASE} cannot be read (it does not exist)"
        in (folder / "output.txt").read_text()
    )


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("strategy", [["strategy=fsdp"], ["strategy=deepspeed_zero2"], RUNS["deepspeed_zero3"][1:]])
def test_merges_are_the_same_whoever_holds_the_weights(folder: Path, strategy: list[str]) -> None:
    """ReLoRA in shards, resumed between two merges, against the run of one device."""
    name = strategy[0].partition("=")[2]
    settings = [*TINY, "lora.rank=4", "lora.merge_every=4", "model.dropout=0", "save.every=6", "save.keep=9"]
    if not (folder / "merging").exists():
        finish(folder, "run_dir=merging", *settings, *ONE)
    finish(folder, f"run_dir={name}", *settings, *TWO, *strategy)
    forget_the_end(folder / name)
    finish(folder, f"resume={name}")
    losses = [[row["train/loss"] for row in rows(folder / run) if "train/loss" in row] for run in ("merging", name)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    merged = "model/stack.blocks.0.attention.q_proj.weight"
    torch.testing.assert_close(
        weights(folder / "merging")[merged], weights(folder / name)[merged], atol=1e-5, rtol=1e-4
    )
