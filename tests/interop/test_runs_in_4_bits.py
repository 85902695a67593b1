"""QLoRA by the command line: a model in 4 bits is adapted, goes on exactly, and is merged whole."""

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.interop.random_folders import write_folder, write_tokenizer
from tests.interop.test_adapter_runs import RUN, TOKENS
from tests.interop.test_init_from import LLAMA
from tests.test_adapters_in_runs import assert_same_end, resumed_in_the_middle
from txtrain.cli import main
from txtrain.model.lora import nf4
from txtrain.saving import BASE, WEIGHT, Reader, list_checkpoints, read_state
from txtrain.trained import load_trained

QLORA = ["lora.rank=2", "lora.base_dtype=nf4", "lora.dropout=0.1"]
STILL = ["trainer.max_steps=1", "optimizer=sgd", "optimizer.lr=0"]

pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT and of what it calls


def train(run_dir, *overrides):
    assert main(["train", *RUN, f"run_dir={run_dir}", *overrides]) == 0
    return json.loads(Path(run_dir, "summary.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a model, the same with weights rounded to those that 4 bits can hold, and a run that adapted it."""
    path = tmp_path_factory.mktemp("4bits")
    model = write_folder(path / "base", "llama", **LLAMA)
    write_tokenizer(path / "base")
    with torch.no_grad():
        for name, layer in model.named_modules():
            if name.endswith("proj"):
                weight = layer.weight
                weight.copy_(nf4.dequantise(nf4.quantise(weight), *weight.shape, torch.float32))
    model.save_pretrained(path / "rounded")
    write_tokenizer(path / "rounded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXTRAIN_CACHE", str(path / "cache"))
        patch.chdir(path)
        steps = ["trainer.max_steps=8", "save.every=4", "save.keep=9", "optimizer.lr=1e-2"]
        train("run", "init_from=base", *QLORA, *steps)
        yield path


def test_a_run_sees_the_base_that_4_bits_hold(folder):
    """With a learning rate of zero, the loss of the rounded weights, which is not that of the base's own."""
    losses = {
        name: train(name, f"init_from={base}", *settings, *STILL)["validation_loss"]
        for name, base, settings in (
            ("still", "base", QLORA),
            ("still_rounded", "rounded", []),
            ("still_whole", "base", []),
        )
    }
    assert losses["still"] == pytest.approx(losses["still_rounded"], rel=1e-6)
    assert losses["still"] != pytest.approx(losses["still_whole"], rel=1e-5)


def test_it_goes_on_exactly_and_its_checkpoints_hold_adapters_only(folder):
    run = folder / "run"
    assert_same_end(run, resumed_in_the_middle(run))
    (last, *_) = list_checkpoints(run / "checkpoints")
    assert {name.rpartition(".")[2] for name in Reader(last).names(WEIGHT)} == {"lora_A", "lora_B"}
    assert read_state(last)["base"]["path"] == str(folder / "base")
    assert not (run / "checkpoints" / BASE).exists()
    summary = json.loads((run / "summary.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    assert summary["parameters"] - summary["trainable_parameters"] == sum(p.numel() for p in base.parameters())


@torch.no_grad()
def test_its_adapters_go_out_for_the_whole_base(folder, capsys):
    """Merged, and to PEFT: W + s B A of the base's own W."""
    trained, base = load_trained(folder / "run"), load_trained(folder / "base")
    best, name = Reader(folder / "run/checkpoints/best"), "stack.blocks.1.ffn.down_proj"
    low, high = (best[f"{WEIGHT}{name}.lora_{part}"] for part in "AB")
    torch.testing.assert_close(
        trained.model.get_submodule(name).weight, base.model.get_submodule(name).weight + 16 / 2 * high @ low
    )
    expected = trained.model(TOKENS)
    assert main(["export", "run", "merged"]) == 0
    assert main(["export", "run", "adapter", "--adapter"]) == 0
    merged = AutoModelForCausalLM.from_pretrained("merged").eval()
    torch.testing.assert_close(merged(TOKENS).logits, expected, atol=1e-4, rtol=1e-4)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained("adapter").eval()
    torch.testing.assert_close(theirs(TOKENS).logits, expected, atol=1e-4, rtol=1e-4)
    capsys.readouterr()
    assert main(["generate", "run", "def", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out
