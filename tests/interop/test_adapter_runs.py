"""Runs that adapt a Hugging Face model: their adapters go out to PEFT, and runs begin with PEFT's."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch

from tests.interop.random_folders import write_folder, write_tokenizer
from tests.interop.test_init_from import LLAMA, TEXT
from txtrain.cli import main
from txtrain.errors import UserError
from txtrain.interop.adapter import export_adapter
from txtrain.trained import load_trained

RUN = ["data=text", f"data.path={TEXT}", "data.seq_len=32", "data.batch_size=4", "logger=none"]
RUN += ["trainer.accelerator=cpu", "trainer.limit_val_batches=1"]
TOKENS = torch.arange(24)[None] * 7 % 256

pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT and of what it calls


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a model, and a run that adapted it."""
    path = tmp_path_factory.mktemp("adapting")
    write_folder(path / "base", "llama", **LLAMA)
    write_tokenizer(path / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXTRAIN_CACHE", str(path / "cache"))
        patch.chdir(path)
        lora = ["lora.rank=2", "lora.init=pissa", "lora.variant=rslora", "lora.rank_pattern={v_proj:3}"]
        steps = ["trainer.max_steps=3", "optimizer.lr=1e-2", "init_from=base", "run_dir=run"]
        assert main(["train", *RUN, *lora, *steps]) == 0
        yield path


@torch.no_grad()
def test_adapters_go_out_to_peft_and_come_in_again(folder):
    """What PiSSA took out of the base is in the adapter: it changes the folder's own weights."""
    expected = load_trained(folder / "run").model(TOKENS)
    assert main(["export", str(folder / "run"), str(folder / "adapter"), "--adapter"]) == 0
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(folder / "adapter").eval()
    torch.testing.assert_close(theirs(TOKENS).logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(load_trained(folder / "adapter").model(TOKENS), expected, atol=1e-4, rtol=1e-4)

    still = ["trainer.max_steps=1", "optimizer=sgd", "optimizer.lr=0", "run_dir=next", "init_from=adapter"]
    assert main(["train", *RUN, *still]) == 0
    losses = [json.loads((folder / run / "summary.json").read_text())["validation_loss"] for run in ("run", "next")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_what_is_no_adapter_of_a_folder_is_refused(folder, capsys):
    shutil.copytree(folder / "run", folder / "merging", symlinks=True)
    config = folder / "merging/config.yaml"
    config.write_text(config.read_text().replace("merge_every: 0", "merge_every: 2").replace("pissa", "kaiming"))
    with pytest.raises(UserError, match="has merged adapters into its weights"):
        export_adapter(folder / "merging", folder / "out")
    config.write_text(config.read_text().replace("rank: 2", "rank: 0"))
    with pytest.raises(UserError, match=r"has no adapters \(lora\.rank=0\)"):
        export_adapter(folder / "merging", folder / "out")
    assert not (folder / "out").exists()
    (folder / "lost").mkdir()
    Path(folder, "lost/adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "gone"}')
    assert main(["train", *RUN, "run_dir=refused", "init_from=lost"]) == 1
    assert "lost is an adapter of gone, which is no folder here" in capsys.readouterr().err
