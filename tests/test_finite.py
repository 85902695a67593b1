"""Weights and moments that are not finite are told by name where they are read or written, and never saved."""

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.profiler import ProfilerActivity, profile

from tests import forked
from txtrain.cli import main
from txtrain.errors import UserError
from txtrain.model.finite import first_not_finite, is_finite
from txtrain.saving.manifest import read_manifest, write_manifest
from txtrain.saving.parts import Part
from txtrain.task.causal_lm import CausalLM
from txtrain.trained import load_trained

ROOT = Path(__file__).parent.parent
DATA = ["data=text", f"data.path={ROOT / 'tests/golden/text.txt'}", "data.seq_len=32", "data.batch_size=4"]
RUN = ["logger=none", "trainer.accelerator=cpu", "trainer.limit_val_batches=1", "samples.length=0"]
RUN += ["trainer.log_every_n_steps=1", "save.every=2", "save.keep=3"]
STAGES = [f"deepspeed_zero{stage}" for stage in (1, 2, 3)]
MODEL = ["tokenizer=byte", "model.dim=32", "model.num_layers=1"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_kind_of_number_is_seen(dtype: torch.dtype) -> None:
    largest = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)  # whose sum is infinite
    assert is_finite(largest) and is_finite(-largest) and is_finite(torch.zeros(0, dtype=dtype))
    for bad in (math.nan, math.inf, -math.inf):
        for place in (0, 7, 14):
            tensor = torch.randn(3, 5).to(dtype)
            tensor.view(-1)[place] = bad
            assert not is_finite(tensor)
            assert first_not_finite([("a", largest), ("b", tensor), ("c", tensor)]) == "b"
    both = torch.tensor([math.inf, -math.inf], dtype=dtype)
    assert not is_finite(both)


def test_what_has_no_numbers_of_this_kind_passes() -> None:
    whole = torch.tensor([1, 2, 255], dtype=torch.uint8)
    assert first_not_finite([("4 bits", whole), ("meta", torch.empty(4, device="meta"))]) is None
    assert first_not_finite([]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_looking_takes_no_memory(dtype: torch.dtype) -> None:
    """A sum in another type than the tensor's would copy it first, which reading a large model has no room for."""
    tensor = torch.ones(10**6, dtype=dtype) * torch.tensor([1.0, -1.0], dtype=dtype).repeat(500_000)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        assert is_finite(tensor)
    assert max(event.cpu_memory_usage for event in seen.events()) < 10**5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With a run of four steps, and its model as a Hugging Face folder with an adapter of it."""
    folder = tmp_path_factory.mktemp("finite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        assert main(["train", *DATA, *RUN, *MODEL, "trainer.max_steps=4", f"run_dir={folder}/run"]) == 0
        assert main(["export", f"{folder}/run", f"{folder}/model"]) == 0
        adapting = [f"init_from={folder}/model", "lora.rank=2", "trainer.max_steps=2", f"run_dir={folder}/adapting"]
        assert main(["train", *DATA, *RUN, *adapting]) == 0
        assert main(["export", f"{folder}/adapting", f"{folder}/adapter", "--adapter"]) == 0
        yield folder


def spoil(file: Path, part: str, value: float = math.nan) -> str:
    """Puts one such number into a tensor of a file, and returns its name."""
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if part in name)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, {"format": "pt"})
    return name


def spoil_checkpoint(checkpoint: Path, part: str) -> str:
    """The same in a checkpoint, which stays whole by its manifest."""
    names = [
        spoil(file, part) for file in checkpoint.glob("tensors_*") if any(part in name for name in load_file(file))
    ]
    found = read_manifest(checkpoint)
    parts = [Part.of(checkpoint / part.name) for part in found["files"]]
    write_manifest(checkpoint, step=found["step"], ranks=found["ranks"], strategy=found["strategy"], parts=parts)
    return names[0].removeprefix("model/")


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "500")
        assert main([str(word) for word in words]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def uses(model: Path, new: Path) -> list[list[str | Path]]:
    """The commands that read a model of text."""
    eval_data = [*DATA, "data.validation_fraction=0.1", "trainer.limit_val_batches=1", "trainer.accelerator=cpu"]
    learning = ["lora.rank=2", "trainer.max_steps=1", f"run_dir={new}-run"]
    return [
        ["generate", model, "the ", "--max-new-tokens", "2", "--device", "cpu"],
        ["eval", model, *eval_data],
        ["export", model, f"{new}-exported"],
        ["train", *DATA, *RUN, f"init_from={model}", *learning],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["q_proj", "embed_tokens", "norm"])
def test_a_folder_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, part: str) -> None:
    model = shutil.copytree(folder / "model", tmp_path / "model")
    name = spoil(model / "model.safetensors", part, math.inf if part == "norm" else math.nan)
    for command in uses(model, tmp_path / "new")[: None if part == "q_proj" else 1]:
        assert f"{model} has weights that are not finite ({name})" in refused(capsys, *command)
    assert not (tmp_path / "new-exported").exists()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_an_adapter_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, part: str) -> None:
    adapter = shutil.copytree(folder / "adapter", tmp_path / "adapter")
    name = spoil(adapter / "adapter_model.safetensors", part)
    for command in uses(adapter, tmp_path / "new")[:3]:
        assert f"not finite ({name})" in refused(capsys, *command)


@pytest.mark.slow
def test_checkpoints_are_refused(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for run, part in (("run", "norm"), ("adapting", "lora_B")):
        copy = shutil.copytree(folder / run, tmp_path / run, symlinks=True)
        name = spoil_checkpoint((copy / "checkpoints/best").resolve(), part)
        commands = uses(copy, tmp_path / "new") + [["export", copy, tmp_path / "new-adapter", "--adapter"]]
        for command in commands if run == "adapting" else commands[:4]:
            assert f"not finite ({name})" in refused(capsys, *command)
        assert f"not finite ({name})" in refused(
            capsys, "generate", copy / "checkpoints/best", "the ", "--device", "cpu"
        )


@pytest.mark.slow
def test_resume_goes_on_from_the_one_before(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run", symlinks=True)
    name = spoil_checkpoint(run / "checkpoints/step_00000004.ckpt", "norm")
    assert main(["train", f"resume={run}", "trainer.max_steps=5"]) == 0
    told = "".join(capsys.readouterr())  # before train.log is opened
    assert f"step_00000004.ckpt cannot be used ({name} is not finite): looking for the one before" in told
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4, 5]
    assert all(row["train/loss"] is not None for row in rows if "train/loss" in row)
    assert is_finite(load_trained(run / "checkpoints/last").model.get_parameter(name))


@pytest.mark.slow
def test_resume_without_a_good_one_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run", symlinks=True)
    for checkpoint in (run / "checkpoints").glob("step_*.ckpt"):
        spoil_checkpoint(checkpoint, "norm")
    assert "none of them can be used" in refused(capsys, "train", f"resume={run}", "trainer.max_steps=6")


@pytest.mark.slow
def test_moments_that_are_not_finite_count_where_training_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run", symlinks=True)
    name = spoil_checkpoint((run / "checkpoints/last").resolve(), "exp_avg_sq")
    weight = name.removeprefix("optimizer/").removesuffix("/exp_avg_sq")
    assert main(["generate", str(run), "the ", "--max-new-tokens", "2", "--device", "cpu"]) == 0  # reads weights only
    assert main(["train", f"resume={run}", "trainer.max_steps=5"]) == 0
    told = "".join(capsys.readouterr())
    assert f"step_00000004.ckpt cannot be used (exp_avg_sq of {weight} is not finite)" in told
    assert "going on from step 2" in told


@pytest.fixture(scope="module")
def averaged(folder: Path) -> Path:
    """A run whose checkpoints have averages of the weights, which are what whoever uses it gets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        command = [*DATA, *RUN, *MODEL, "ema.decay=0.9", "trainer.max_steps=2", f"run_dir={folder}/averaged"]
        assert main(["train", *command]) == 0
    return folder / "averaged"


@pytest.mark.slow
def test_averages_are_checked_where_they_are_what_is_used(
    averaged: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = shutil.copytree(averaged, tmp_path / "run", symlinks=True)
    spoiled = spoil_checkpoint((run / "checkpoints/best").resolve(), "/average")
    name = spoiled.removeprefix("optimizer/").removesuffix("/average")
    for command in uses(run, tmp_path / "new"):
        assert f"not finite ({name})" in refused(capsys, *command)
    assert f"average of {name} is not finite" in "".join(resumed(capsys, run))


@pytest.mark.slow
def test_weights_beside_a_good_average_count_where_training_goes_on(
    averaged: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = shutil.copytree(averaged, tmp_path / "run", symlinks=True)
    name = spoil_checkpoint((run / "checkpoints/best").resolve(), "model/")
    assert first_not_finite(load_trained(run).model.named_parameters()) is None
    assert f"({name} is not finite)" in "".join(resumed(capsys, run))


def resumed(capsys: pytest.CaptureFixture[str], run: Path) -> tuple[str, str]:
    """What is told where no checkpoint can be gone on from."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "500")
        assert main(["train", f"resume={run}", "trainer.max_steps=4"]) == 1
    return capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("averages", [False, True])
def test_a_moment_that_is_not_finite_ends_a_run_with_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], averages: bool
) -> None:
    """As a second moment that has overflowed: its weight would stay where it is for good, and nothing would show it."""
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    step: Callable[..., Any] = torch.optim.AdamW.step

    def overflowing(optimizer: torch.optim.AdamW, *arguments: Any, **keywords: Any) -> Any:
        found = step(optimizer, *arguments, **keywords)
        state = next(iter(optimizer.state.values()))
        if int(state["step"]) == 3:
            state["exp_avg_sq"].view(-1)[0] = math.inf
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", overflowing)
    run = tmp_path / "run"
    command = ["train", *DATA, *RUN, *MODEL, "trainer.max_steps=6", f"run_dir={run}", f"ema.decay={0.9 * averages}"]
    line = refused(capsys, *command, "trainer.val_check_interval=4")
    assert "the moments are not finite at step 4 (exp_avg_sq of " in line
    assert (run / "checkpoints/last").resolve().name == "step_00000002.ckpt"


def test_a_type_that_is_too_small_for_a_weight_is_told(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(folder / "model", tmp_path / "model")
    spoil(model / "model.safetensors", "norm", 1e6)
    assert load_trained(model).model
    with pytest.raises(UserError, match=r"norm.* is not finite in float16: use float32"):
        load_trained(model, dtype=torch.float16)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [math.nan, None])
@pytest.mark.parametrize("on_spike", ["warn", "skip", "stop"])
def test_no_such_checkpoint_takes_a_good_ones_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    loss: float | None,
    on_spike: str,
) -> None:
    """Whether the loss shows it, or stays finite, as it does where queries are not a number."""
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    losses: Callable[..., Any] = CausalLM.losses

    def poisoned(task: CausalLM, batch: dict[str, Any]) -> Any:
        found = losses(task, batch)
        if task.training and task.global_step == 2 and loss is None:
            next(p for name, p in task.model.named_parameters() if "norm" in name).data.fill_(math.nan)
        spoiled = task.training and task.global_step == 2 and loss is not None
        return tuple(each * math.nan for each in found) if spoiled else found

    monkeypatch.setattr(CausalLM, "losses", poisoned)
    run = tmp_path / "run"
    command = ["train", *DATA, *RUN, *MODEL, f"on_spike={on_spike}", "trainer.max_steps=6", f"run_dir={run}"]
    if loss is not None and on_spike != "warn":  # the step is left out, and the weights stay good
        if on_spike == "skip":
            assert main(command) == 0
        else:
            with pytest.raises(SystemExit):
                main(command)
    else:
        line = refused(capsys, *command)
        assert "the weights are not finite at step" in line and "nothing more is saved" in line
        assert (run / "checkpoints/last").resolve().name == "step_00000002.ckpt"
    for checkpoint in (run / "checkpoints").iterdir():
        if checkpoint.suffix == ".ckpt":
            assert first_not_finite(load_trained(checkpoint).model.named_parameters()) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy, kind",
    [
        ("ddp", "weights"),
        pytest.param("ddp", "moments", marks=pytest.mark.heavy),
        *(pytest.param(*case, marks=pytest.mark.heavy) for case in product(("fsdp", *STAGES), ("weights", "moments"))),
    ],
)
def test_the_first_process_tells_what_only_another_has(tmp_path: Path, strategy: str, kind: str) -> None:
    """The third step spoils a weight, or a moment, of the second process alone."""
    if "deepspeed" in strategy:
        pytest.importorskip("deepspeed")
    script = tmp_path / "train.py"
    script.write_text(SPOILING)
    command = [script, *DATA, *RUN, *MODEL, "optimizer=adamw", f"strategy={strategy}", "trainer.devices=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "SPOILED": kind, "COLUMNS": "500"}
    environment["TXTRAIN_CACHE"] = str(tmp_path / "cache")
    last = ["trainer.max_steps=4", "trainer.val_check_interval=4", f"run_dir={tmp_path}/run"]
    done = forked.run([sys.executable, *command, *last], cwd=tmp_path, env=environment, timeout=240)
    assert done.returncode == 1, done.stdout + done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"the {kind} are not finite at step 4 (" in line and "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step_*.ckpt")] == ["step_00000002.ckpt"]


SPOILING = """
import math, os, sys
import torch
from torch.profiler import ProfilerActivity, profile

step = torch.optim.AdamW.step

def spoiling(optimizer, *arguments, **keywords):
    found = step(optimizer, *arguments, **keywords)
    weight, state = next(iter(optimizer.state.items()))
    if os.environ.get("LOCAL_RANK") == "1" and int(state["step"]) == 4:
        spoiled = weight.detach() if os.environ["SPOILED"] == "weights" else state["exp_avg"]
        getattr(spoiled, "to_local", lambda: spoiled)().view(-1)[0] = math.inf
    return found

torch.optim.AdamW.step = spoiling

from txtrain.cli import start

start(["train", *sys.argv[1:]])
"""
