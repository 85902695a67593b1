"""A run in the words that one types."""

from pathlib import Path

import pytest
import yaml

from txtrain.callbacks.description import describe_memory
from txtrain.cli import main
from txtrain.config import config_directory, options
from txtrain.naming import nearest_option, option_name

CONF = config_directory()
TEXT = Path(__file__).parents[1] / "golden" / "text.txt"
GROUPS = ("encoding", "norm", "attention", "ffn", "optimizer", "schedule", "checkpointing", "strategy")
OPTIONS = [(group, option) for group in GROUPS for option in options(CONF, group)]
COMMON = ["data=text", f"data.path={TEXT}", "data.seq_len=32", "logger=none", "trainer.accelerator=cpu"]


def node(group, option):
    return yaml.safe_load((CONF / group / f"{option}.yaml").read_text())


@pytest.mark.parametrize("group, option", OPTIONS)
def test_an_option_is_named_as_it_is_typed(group, option):
    assert option_name(group, node(group, option)) == option


def test_a_key_that_differs_is_named():
    assert option_name("attention", node("attention", "sliding") | {"window": 32}) == "sliding (window=32)"
    assert option_name("encoding", node("encoding", "rope") | {"theta": 500000.0}) == "rope (theta=500000)"
    assert option_name("optimizer", node("optimizer", "adamw") | {"lr": 0.001}) == "adamw"  # YAML reads 1e-3 as text
    zero = node("strategy", "deepspeed_zero2")
    zero["zero_optimization"]["reduce_bucket_size"] = 10
    assert nearest_option("strategy", zero) == ("deepspeed_zero2", ["zero_optimization.reduce_bucket_size=10"])


def test_an_option_from_elsewhere_goes_by_its_class():
    assert option_name("norm", {"_target_": "mine.norms.Odd", "eps": 1}) == "Odd"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))


def lines(capsys):
    return dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)


def test_a_dry_run_prints_the_start_up_summary(folder, capsys):
    typed = ["ffn=geglu", "attention=sliding", "attention.window=8", "ema.decay=0.9", "tokenizer=byte"]
    run = [*COMMON, *typed, "model.dim=32", "model.num_layers=2", "trainer.max_steps=3", "samples.length=0"]
    assert main(["train", *run, "dry_run=true"]) == 0
    dry = lines(capsys)
    assert not [name for name in dry if name.endswith(":")], "no YAML"
    assert main(["train", *run, "run_dir=run"]) == 0
    real = lines(capsys)
    for name in ("model", "axes", "ema", "data", "batch", "steps", "attention", "device"):
        assert dry[name] == real[name]
    assert "ffn geglu" in dry["axes"] and "attention sliding (window=8)" in dry["axes"]
    assert dry["steps"].split()[0] == "3"
    assert dry["memory"].split()[-1] == "shards"
    assert real["checkpointing"].strip().startswith("none: ")


def test_adapters_and_where_the_weights_come_from_are_named(folder, capsys):
    run = [*COMMON, "model.dim=32", "model.num_layers=2", "trainer.max_steps=1", "samples.length=0"]
    assert main(["train", *run, "tokenizer=byte", "run_dir=run"]) == 0
    capsys.readouterr()
    adapters = ["lora.rank=4", "lora.variant=dora", "lora.targets=[q_proj,v_proj]"]
    assert main(["train", *run, "init_from=run", *adapters, "dry_run=true"]) == 0
    told = lines(capsys)
    assert told["lora"].strip() == "rank 4, alpha 16, dora; targets q_proj, v_proj: 4 layers"
    assert "checkpoints/step_00000001.ckpt (all of it is trained)" in told["starts from"]
    # A and B of rank 4 and the lengths m of 32 rows, in 4 layers.
    assert f" {4 * (4 * 64 + 32) / 1000:.1f}k trainable" in told["model"]


def test_a_head_for_other_labels_is_new(folder, capsys):
    Path("data.csv").write_text("text,label\n" + "".join(f"word {i} of a text,{i % 2}\n" for i in range(40)))
    size = ["model.dim=32", "model.num_layers=1", "trainer.max_steps=1", "logger=none", "trainer.accelerator=cpu"]
    masked = [*size, "task=masked_lm", "data=text", f"data.path={TEXT}", "data.seq_len=32", "tokenizer=byte"]
    assert main(["train", *masked, "samples.length=0", "run_dir=run"]) == 0
    capsys.readouterr()
    labelled = [*size, "task=sequence_classification", "data=labelled", "data.path=data.csv", "data.seq_len=32"]
    assert main(["train", *labelled, "init_from=run", "dry_run=true"]) == 0
    told = lines(capsys)
    assert "(new head, all else is trained)" in told["starts from"]
    assert "bidirectional" in told["model"]


def test_memory_of_a_model_is_what_its_tensors_take():
    import torch

    model = torch.nn.Linear(1024, 1024, bias=False)
    adamw = describe_memory(model, {"optimizer": {"_target_": "txtrain.optim.adamw"}}, "32-true")
    assert adamw.startswith("16.0 MiB before activations (weights 4.0 MiB, gradients 4.0 MiB, optimizer 8.0 MiB)")
    model.weight.requires_grad_(False)
    frozen = describe_memory(model, {"optimizer": {"_target_": "txtrain.optim.sgd"}}, "bf16-true")
    assert frozen.startswith("2.0 MiB")


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_a_profiler_writes_its_report_and_the_end_says_where(profiler, folder, capsys):
    run = [*COMMON, "tokenizer=byte", "model.dim=32", "model.num_layers=1", "trainer.max_steps=2", "samples.length=0"]
    assert main(["train", *run, f"trainer.profiler={profiler}", "run_dir=run"]) == 0
    assert lines(capsys)["profile"].strip() == "at the end of run/train.log"
    assert "Profiler Report" in Path("run/train.log").read_text()
