"""A trained model comes back from a run and from each of its checkpoints, and what is none is told in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.generate.models import llama_folder
from txtrain.cli import main
from txtrain.errors import UserError
from txtrain.trained import load_trained

TEXT = Path(__file__).parent / "golden" / "text.txt"
RUN = [
    "data=text",
    f"data.path={TEXT}",
    "data.seq_len=32",
    "logger=none",
    "trainer.accelerator=cpu",
    "samples.length=0",
]
TINY = ["tokenizer=char", "model.dim=32", "model.num_layers=2", "encoding=learned", "trainer.max_steps=8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, and another with adapters on it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["train", *RUN, *TINY, "run_dir=run", "save.every=4"]) == 0
        assert main(["train", *RUN, "init_from=run", "lora.rank=4", "trainer.max_steps=8", "run_dir=adapted"]) == 0
    return folder / "run"


def validation_loss(trained, text):
    """Mean cross-entropy over the windows of the text that a run holds out."""
    tokens = torch.tensor(trained.tokenizer.encode(text) + [trained.tokenizer.end_of_text])
    logits = trained.model(tokens[None, :-1])[0]
    return torch.nn.functional.cross_entropy(logits, tokens[1:]).item()


def test_a_run_gives_its_best_checkpoint_and_a_checkpoint_itself(run):
    last = load_trained(run / "checkpoints" / "last")
    first = load_trained(run / "checkpoints" / "step_00000004.ckpt")
    assert load_trained(run).model.state_dict().keys() == last.model.state_dict().keys()
    text = TEXT.read_text()[:30]
    assert validation_loss(last, text) < validation_loss(first, text)
    assert last.max_len == 32
    assert last.tokenizer.decode(last.tokenizer.encode(text)) == text
    assert last.axes["model"]["dim"] == 32
    assert not last.model.training
    assert not any(parameter.requires_grad for parameter in last.model.parameters())


def test_adapters_are_merged(run):
    """The model with adapters is one without, and is not the one that they adapt."""
    base, adapted = load_trained(run), load_trained(run.parent / "adapted")
    assert base.model.state_dict().keys() == adapted.model.state_dict().keys()
    text = TEXT.read_text()[:30]
    assert validation_loss(adapted, text) < validation_loss(base, text)


def test_a_folder_of_runs_means_the_newest(run, capsys):
    assert load_trained(run.parent).folder == run.parent / "adapted"
    assert capsys.readouterr().err == f"{run.parent}: its newest run is adapted\n"


def test_the_type_and_the_device_are_those_asked_for(run):
    trained = load_trained(run, device="cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in trained.model.parameters()} == {torch.bfloat16}
    assert trained.device.type == "cpu"


def test_what_is_no_model_is_told_in_a_line(run, tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist: name a run"):
        load_trained(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a file: name a run"):
        load_trained(run / "config.yaml")
    with pytest.raises(UserError, match=r"has neither config\.yaml nor config\.json: name a run"):
        load_trained(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, symlinks=True)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        load_trained(copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint: name a run that has trained"):
        load_trained(copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["ffn"]["_target_"] = "os.system"
    (copy / "config.yaml").write_text(json.dumps(config))
    shutil.copytree(run / "checkpoints", copy / "checkpoints", symlinks=True)
    with pytest.raises(UserError, match="which is no class of txtrain"):
        load_trained(copy)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return llama_folder(folder), folder


def test_a_hugging_face_folder_is_the_same_model(folder):
    theirs, path = folder
    trained = load_trained(path)
    tokens = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(trained.model(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    assert trained.max_len == 64
    assert trained.end_tokens == {256, 7}
    assert trained.model.head.linear.weight is trained.model.embedding.tokens.weight
    assert {parameter.dtype for parameter in trained.model.parameters()} == {torch.float32}
    assert trained.tokenizer.decode(trained.tokenizer.encode("né")) == "né"


def test_a_folder_that_is_not_whole_is_told_in_a_line(folder, tmp_path):
    copy = shutil.copytree(folder[1], tmp_path / "copy")
    (copy / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config\.json cannot be read \(it is not JSON"):
        load_trained(copy)
    (copy / "generation_config.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))
    with pytest.raises(UserError, match="has a tokenizer of 257 tokens for a model of 200"):
        load_trained(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        load_trained(copy)
