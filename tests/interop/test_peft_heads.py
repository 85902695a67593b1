"""Adapters with a head that scores labels, which trains in full: PEFT's `modules_to_save`, both ways."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from tests.interop.random_folders import read
from tests.interop.test_ast import saved_ast, tones
from tests.interop.test_classifiers import LABELS, named, their_folder
from tests.interop.test_vit import saved_vit
from tests.model.adapted import randomise_adapters
from tests.task.examples import write_labelled, write_tagged
from txtrain.cli import main
from txtrain.errors import UserError
from txtrain.interop import read_folder
from txtrain.interop.adapted import read_adapted
from txtrain.interop.peft import TENSORS, write_adapter
from txtrain.interop.peft_config import CONFIG
from txtrain.model.lora import LoRA
from txtrain.trained import load_trained

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
RUN = ["logger=none", "trainer.accelerator=cpu", "trainer.max_steps=2", "lora.rank=2", "optimizer.lr=1e-2"]
RUN += ["init_from=base"]
TOKENS = torch.randint(5, 300, (3, 20), generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT and of what it calls


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    logging.set_verbosity(verbosity)


@torch.no_grad()
def logits(model, inputs):
    """Of ours or of theirs."""
    found = model(inputs)
    return getattr(found, "logits", found)


def trained_on_texts(task, *more, run="run"):
    if task == "sequence_classification":
        data = ["data=labelled", f"data.path={write_labelled(Path('rows.jsonl'))}"]
    else:
        data = ["data=tagged", f"data.path={write_tagged(Path('rows.jsonl'))}"]
    assert main(["train", f"task={task}", *data, "data.seq_len=32", *RUN, f"run_dir={run}", *more]) == 0
    return load_trained(run)


TEXTS = [
    ("BertForMaskedLM", "sequence_classification", ["bert.pooler.dense", "classifier"]),
    ("BertForSequenceClassification", "sequence_classification", ["bert.pooler.dense", "classifier"]),
    ("RobertaForMaskedLM", "sequence_classification", ["classifier"]),
    ("DistilBertForMaskedLM", "sequence_classification", ["classifier", "pre_classifier"]),
    ("BertForMaskedLM", "token_classification", ["classifier"]),
]


@pytest.mark.parametrize("kind, task, saved", TEXTS)
def test_a_run_of_texts_gives_equal_logits_in_peft_and_comes_in_again(kind, task, saved, tmp_path, capsys):
    """A head of new labels, and one of the very labels of the base, which trains in full too."""
    has_labels = named() if kind.endswith("Classification") else {}
    their_folder(tmp_path / "base", getattr(transformers, kind), **has_labels)
    head = ["head.transform=relu"] if kind.startswith("Distil") else []
    trained = trained_on_texts(task, *head)
    expected = logits(trained.model, TOKENS)
    assert main(["export", "run", "adapter", "--adapter"]) == 0
    assert "read again: equal" in capsys.readouterr().out

    of_texts = task == "sequence_classification"
    config = json.loads(Path("adapter", CONFIG).read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS" if of_texts else "TOKEN_CLS", saved)
    auto = "AutoModelForSequenceClassification" if of_texts else "AutoModelForTokenClassification"
    base = getattr(transformers, auto).from_pretrained("base", num_labels=len(trained.labels))
    theirs = peft.PeftModel.from_pretrained(base, "adapter").eval()
    torch.testing.assert_close(logits(theirs, TOKENS), expected, **CLOSE)
    torch.testing.assert_close(logits(theirs.merge_and_unload(), TOKENS), expected, **CLOSE)
    again = load_trained("adapter")
    assert (again.labels, again.task) == (trained.labels, trained.task)
    torch.testing.assert_close(logits(again.model, TOKENS), expected, **CLOSE)


def test_training_begins_with_an_adapters_head_if_the_labels_are_the_same(tmp_path):
    """And with a new one for other labels; whole models that are made of adapters have their labels."""
    their_folder(tmp_path / "base", transformers.BertForMaskedLM)
    trained = trained_on_texts("sequence_classification")
    assert main(["export", "run", "adapter", "--adapter"]) == 0
    still = ["init_from=adapter", "optimizer=sgd", "optimizer.lr=0", "lora.rank=0", "trainer.max_steps=1"]
    same = trained_on_texts("sequence_classification", *still, run="same")
    torch.testing.assert_close(logits(same.model, TOKENS), logits(trained.model, TOKENS), **CLOSE)
    other = trained_on_texts("token_classification", *still, run="other")
    assert logits(other.model, TOKENS).shape == (3, 20, len(other.labels))
    for name, weight in trained.model.state_dict().items():
        if not name.startswith("head."):
            torch.testing.assert_close(other.model.state_dict()[name], weight, **CLOSE)
    assert main(["export", "adapter", "whole"]) == 0
    whole = transformers.AutoModelForSequenceClassification.from_pretrained("whole").eval()
    assert list(whole.config.id2label.values()) == LABELS
    torch.testing.assert_close(logits(whole, TOKENS), logits(trained.model, TOKENS), **CLOSE)


def test_a_run_of_images(tmp_path):
    saved_vit(tmp_path / "base", kind="ViTModel", image_size=8, patch_size=2, num_channels=1)
    run = ["task=image_classification", "data=digits", *RUN, "run_dir=run"]
    assert main(["train", *run]) == 0
    trained, images = load_trained("run"), torch.randn(2, 1, 8, 8)
    assert main(["export", "run", "adapter", "--adapter"]) == 0
    theirs = peft.AutoPeftModel.from_pretrained("adapter", num_labels=10).eval()
    assert type(theirs.get_base_model()) is transformers.ViTForImageClassification
    torch.testing.assert_close(logits(theirs, images), logits(trained.model, images), **CLOSE)
    torch.testing.assert_close(logits(read("adapter"), images), logits(trained.model, images), **CLOSE)
    assert load_trained("adapter").labels == trained.labels


def test_a_run_of_sounds(tmp_path):
    saved_ast(heard={"mean": -5.0, "std": 4.0}, num_labels=5)
    Path("in").rename("base")
    tones("high", 900)
    tones("low", 300, seconds=0.2)
    data = ["task=audio_classification", "data=audio_folder", "data.path=own", "data.batch_size=4"]
    assert main(["train", *data, *RUN, "run_dir=run"]) == 0
    trained, frames = load_trained("run"), torch.randn(2, 40, 24)
    assert main(["export", "run", "adapter", "--adapter"]) == 0
    base = transformers.ASTForAudioClassification.from_pretrained("base", num_labels=2, ignore_mismatched_sizes=True)
    theirs = peft.PeftModel.from_pretrained(base, "adapter").eval()
    torch.testing.assert_close(logits(theirs, frames), logits(trained.model, frames), **CLOSE)
    assert load_trained("adapter").labels == ("high", "low")


def test_both_heads_of_deit_and_an_adapter_in_one(tmp_path):
    """What is in a head that is saved whole is merged."""
    saved_vit(tmp_path / "base", kind="DeiTForImageClassificationWithTeacher", num_labels=7)
    ours, images = read("base"), torch.randn(2, 3, 16, 16)
    LoRA(rank=3, targets=["q_proj", "head.linear"]).apply(ours, adapt_only=True)
    randomise_adapters(ours)
    family, how = read_folder("base").family, {"heads": 4, "base": tmp_path / "base"}
    architecture = "DeiTForImageClassificationWithTeacher"
    write_adapter(tmp_path / "adapter", ours, family, architecture=architecture, **how)
    theirs = peft.AutoPeftModel.from_pretrained("adapter").eval()
    torch.testing.assert_close(logits(theirs, images), logits(ours, images), **CLOSE)
    torch.testing.assert_close(logits(read("adapter"), images), logits(ours, images), **CLOSE)


THEIRS = [
    ("BertForSequenceClassification", "SEQ_CLS", {"target_modules": "all-linear"}),
    ("RobertaForTokenClassification", "TOKEN_CLS", {"target_modules": ["query", "value"]}),
    ("DistilBertForSequenceClassification", "SEQ_CLS", {"use_dora": True, "target_modules": ["q_lin"]}),
    ("BertForTokenClassification", None, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
]


@pytest.mark.parametrize("kind, task_type, settings", THEIRS)
def test_adapters_of_peft_give_equal_logits_in_ours(kind, task_type, settings, tmp_path):
    """With more labels than their base."""
    kind = getattr(transformers, kind)
    their_folder(tmp_path / "base", kind)
    base = kind.from_pretrained("base", num_labels=4, ignore_mismatched_sizes=True)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=2, task_type=task_type, **settings)).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name or "magnitude" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, mean=float("magnitude" in name), std=0.3)
    theirs.save_pretrained("adapter")
    trained = load_trained("adapter")
    assert trained.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    torch.testing.assert_close(logits(trained.model, TOKENS), logits(theirs, TOKENS), **CLOSE)


def test_an_adapter_in_a_head_is_left_out_where_the_head_is_new(tmp_path):
    """PEFT's `all-linear` means BERT's pooler too, which the tags of tokens have not."""
    their_folder(tmp_path / "base", transformers.BertForSequenceClassification)
    base = transformers.BertForSequenceClassification.from_pretrained("base")
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=2, task_type="SEQ_CLS", target_modules="all-linear"))
    theirs.save_pretrained("adapter")
    trained = trained_on_texts("token_classification", "init_from=adapter", "trainer.max_steps=1")
    weight = base.base_model.encoder.layer[0].output.LayerNorm.weight
    torch.testing.assert_close(trained.model.stack.blocks[0].norm.norms[1].weight, weight, **CLOSE)


def test_what_is_no_head_of_labels_is_told_in_one_line(tmp_path):
    their_folder(tmp_path / "base", transformers.BertForMaskedLM)
    base = transformers.BertForSequenceClassification.from_pretrained("base", num_labels=3)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query"]))
    theirs.save_pretrained("adapter")
    config, saved = json.loads(Path("adapter", CONFIG).read_text()), load_file(Path("adapter", TENSORS))

    def refusal(reader, tensors=saved, **changes):
        Path("adapter", CONFIG).write_text(json.dumps(config | changes))
        save_file(tensors, Path("adapter", TENSORS))
        with pytest.raises(UserError) as error:
            reader()
        assert "\n" not in str(error.value)
        return str(error.value)

    said = refusal(lambda: read("adapter"))  # the pooler was random, and PEFT saved nothing of it
    assert "has bert.pooler.dense.bias, without which" in said and "bert.pooler.dense in modules_to_save" in said
    moved = {name.replace("classifier", "bert.embeddings.LayerNorm"): tensor for name, tensor in saved.items()}
    assert "has bert.embeddings.LayerNorm.bias whole" in refusal(lambda: read_adapted("adapter"), moved)
    more = saved | {"base_model.model.bert.embeddings.LayerNorm.bias": torch.zeros(32)}
    assert "has bert.embeddings.LayerNorm.bias whole" in refusal(lambda: read("adapter"), more)
    Path("adapter", "labels.json").write_text('["one", "two"]')
    assert "names 2 labels, and the head scores 3" in refusal(lambda: read_adapted("adapter"))


def test_a_head_that_their_class_has_not_is_refused(tmp_path, capsys):
    their_folder(tmp_path / "base", transformers.BertForMaskedLM)
    trained_on_texts("sequence_classification", "head=mean")
    assert main(["export", "run", "adapter", "--adapter"]) == 1
    said = capsys.readouterr().err
    assert "bert has no counterpart of head=mean" in said and "leave out --adapter" in said
    assert not Path("adapter").exists()
