"""Runs in which the weights under adapters change: ReLoRA merges, PiSSA's residual. They go on exactly."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from txtrain.cli import main
from txtrain.config import saved_config
from txtrain.run_model import adapted_model, model_of_run
from txtrain.saving import BASE, WEIGHT, Reader, list_checkpoints
from txtrain.trained import find_best, load_trained

TEXT = Path(__file__).parent / "golden" / "text.txt"
COMMON = ["data=text", f"data.path={TEXT}", "data.seq_len=16", "logger=none", "trainer.accelerator=cpu"]
COMMON += ["data.batch_size=4", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1"]
MODEL = ["tokenizer=char", "model.dim=16", "model.num_layers=1", "model.dropout=0.1"]
MERGING = ["lora.rank=2", "lora.alpha=8", "lora.merge_every=3", "lora.merge_warmup=1", "trainer.max_steps=8"]


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def train(run_dir, *overrides):
    assert main(["train", *COMMON, f"run_dir={run_dir}", "save.every=4", "save.keep=9", *overrides]) == 0
    return run_dir


def end_of(run_dir):
    reader = Reader(list_checkpoints(run_dir / "checkpoints")[0])
    return {name: reader[name] for name in reader}


def resumed_in_the_middle(run_dir):
    """A copy that lost its last checkpoint and then went on."""
    parts = run_dir.with_name(run_dir.name + "_parts")
    shutil.copytree(run_dir, parts, symlinks=True)
    shutil.rmtree(list_checkpoints(parts / "checkpoints")[0])
    assert main(["train", f"resume={parts}"]) == 0
    return parts


def assert_same_end(one, other):
    ends = end_of(one), end_of(other)
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


@pytest.mark.parametrize("optimizer", ["optimizer=adamw", "optimizer=muon"])
def test_relora_goes_on_exactly_and_its_checkpoints_hold_the_merged_weights(tmp_path, optimizer):
    """Merges at steps 3 and 6, a checkpoint at 4: what is resumed has a base that has changed and will change."""
    run = train(tmp_path / "run", *MODEL, *MERGING, optimizer)
    assert_same_end(run, resumed_in_the_middle(run))
    before, after = (Reader(path) for path in reversed(list_checkpoints(run / "checkpoints")))
    name = f"{WEIGHT}stack.blocks.0.attention.q_proj.weight"
    assert not torch.equal(before[name], after[name])
    assert not (run / "checkpoints" / BASE).exists()  # without biases all that is frozen is merged into
    rates = [json.loads(line).get("train/lr") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(rates)
    load_trained(run)


def test_relora_does_not_forget_what_it_merged(tmp_path):
    """With a learning rate of zero from the merge on, the loss stays; without biases, weight decay and dropout."""
    still = [*MODEL, *MERGING, "model.dropout=0", "trainer.max_steps=4", "optimizer=sgd", "optimizer.lr=0.5"]
    run = train(tmp_path / "run", *still, "save.every=1")
    at_two, at_three, at_four = (Reader(path) for path in reversed(list_checkpoints(run / "checkpoints")[-4:][:3]))
    name = f"{WEIGHT}stack.blocks.0.attention.q_proj."
    learned = at_three[f"{name}weight"] - at_two[f"{name}weight"]
    assert torch.linalg.matrix_rank(learned, rtol=1e-2) == 2
    assert not at_three[f"{name}lora_B"].any()
    assert torch.equal(at_three[f"{name}weight"], at_four[f"{name}weight"])


def test_a_base_that_pissa_changed_is_the_runs_own(tmp_path):
    first = train(tmp_path / "first", *MODEL, "trainer.max_steps=2")
    adapted = ["lora.rank=2", "lora.init=pissa", "trainer.max_steps=8", "model.dropout=0.1", "optimizer.lr=1e-2"]
    run = train(tmp_path / "run", f"init_from={first}", *adapted, "lora.b_lr_ratio=4")
    assert_same_end(run, resumed_in_the_middle(run))
    base = Reader(run / "checkpoints" / BASE)
    q_proj = f"{WEIGHT}stack.blocks.0.attention.q_proj."
    before = load_trained(first).model.state_dict()[f"{q_proj.removeprefix(WEIGHT)}weight"]
    start = 16 / 2 * base[f"{q_proj}lora_B0"] @ base[f"{q_proj}lora_A0"]
    torch.testing.assert_close(base[f"{q_proj}weight"] + start, before)
    assert f"{WEIGHT}embedding.tokens.weight" in base
    summary = json.loads((run / "summary.json").read_text())
    again = train(tmp_path / "again", f"init_from={run}", "optimizer=sgd", "optimizer.lr=0", "trainer.max_steps=1")
    merged = json.loads((again / "summary.json").read_text())
    assert merged["validation_loss"] == pytest.approx(summary["validation_loss"], rel=1e-5)


@pytest.mark.parametrize("target, variant", [("head.linear", "lora"), ("embedding.tokens", "dora")])
def test_merging_an_adapter_of_a_tied_matrix_leaves_two_matrices(tmp_path, capfd, target, variant):
    """The other layer keeps its own: logits are those of the run, here, in transformers and in a run from there on."""
    first = train(tmp_path / "first", *MODEL, "trainer.max_steps=2")
    settings = ["lora.rank=2", f"lora.targets=[all,{target}]", f"lora.variant={variant}", "optimizer.lr=0.1"]
    run = train(tmp_path / "run", f"init_from={first}", *settings, "trainer.max_steps=4")
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        expected = adapted_model(model_of_run(run), find_best(run)).eval()(tokens)
        merged = load_trained(run).model
        torch.testing.assert_close(merged(tokens), expected, rtol=1e-5, atol=1e-5)
        other = {"head.linear", "embedding.tokens"} - {target}
        own = load_trained(first).model.get_parameter(f"{other.pop()}.weight")
        assert sum(torch.equal(own, merged.get_submodule(name).weight) for name in ("head.linear", "embedding.tokens"))
        assert main(["export", str(run), str(tmp_path / "out")]) == 0
        assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        torch.testing.assert_close(theirs(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    still = ["optimizer=sgd", "optimizer.lr=0", "trainer.max_steps=1"]
    again = train(tmp_path / "again", f"init_from={run}", *still)
    torch.testing.assert_close(load_trained(again).model(tokens), expected, rtol=1e-5, atol=1e-5)
    assert saved_config(again).embedding.tied is False
    capfd.readouterr()
    assert main(["train", *COMMON, f"init_from={run}", f"run_dir={tmp_path}/tied", "embedding.tied=true", *still]) == 1
    assert "has a matrix for embedding.tokens.weight and one for head.linear.weight" in capfd.readouterr().err
