"""ViT and DeiT folders in and out, against transformers' own models of the same folders."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from transformers.utils import logging

from tests.interop.random_folders import read
from tests.interop.test_encoders import saved
from tests.model.adapted import randomise_adapters
from txtrain.cli import main
from txtrain.data.pixels import Pixels
from txtrain.errors import UserError
from txtrain.interop import read_folder
from txtrain.interop.peft import write_adapter
from txtrain.model.lora import LoRA
from txtrain.trained import load_trained

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VIT |= {"image_size": 16, "patch_size": 4}
NAMED = {"id2label": {0: "cat", 1: "dog", 2: "Übel"}, "label2id": {"cat": 0, "dog": 1, "Übel": 2}}
VARIANTS = [
    ("ViTModel", {}),
    ("ViTModel", {"image_size": 18, "num_channels": 4, "hidden_act": "relu"}),  # two pixels belong to no patch
    ("ViTForImageClassification", {}),
    ("ViTForImageClassification", {"qkv_bias": False, "num_labels": 5, "hidden_act": "gelu_new"}),
    ("ViTForImageClassification", {"layer_norm_eps": 0.1, "hidden_act": "silu", **NAMED}),
    ("ViTForImageClassification", {"image_size": [16, 24], "patch_size": [4, 6], "num_channels": 1, "num_labels": 3}),
    ("DeiTModel", {"qkv_bias": False}),
    ("DeiTForImageClassification", {"num_labels": 7}),
    ("DeiTForImageClassificationWithTeacher", {"num_labels": 7, "num_channels": 1}),
]


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    monkeypatch.chdir(tmp_path)
    yield
    logging.set_verbosity(verbosity)


def saved_vit(folder, kind="ViTForImageClassification", **config):
    return saved(folder, kind, kind[:4] if kind.startswith("DeiT") else "ViT", **VIT | config)


@pytest.mark.parametrize("kind, config", VARIANTS, ids=str)
@torch.no_grad()
def test_logits_are_equal_in_and_out(kind, config, capsys):
    theirs = saved_vit("in", kind, **config)
    ours = read("in")
    height, width = read_folder("in").axes["embedding"]["image_size"]
    images = torch.randn(3, theirs.config.num_channels, height, width)
    expected = theirs(images)[0]
    torch.testing.assert_close(ours(images), expected, **CLOSE)
    if height == width:  # of others transformers takes the root of the number of patches for the grid
        larger = torch.randn(2, theirs.config.num_channels, height + 9, width + 20)
        torch.testing.assert_close(ours(larger), theirs(larger, interpolate_pos_encoding=True)[0], **CLOSE)
    assert main(["export", "in", "out"]) == 0
    assert "logits equal in txtrain and transformers" in capsys.readouterr().out
    again = type(theirs).from_pretrained("out").eval()
    torch.testing.assert_close(again(images)[0], expected, **CLOSE)
    written, before = (json.loads(Path(name, "config.json").read_text()) for name in ("out", "in"))
    for key in ("architectures", "model_type", "image_size", "patch_size"):
        assert written[key] == before[key], key


def test_names_of_labels_and_what_makes_pixels_go_through():
    theirs = saved_vit("in", **NAMED)
    said = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 3}
    said |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "of_theirs": "kept"}
    Path("in/preprocessor_config.json").write_text(json.dumps(said))
    trained = load_trained("in")
    assert trained.labels == ("cat", "dog", "Übel")
    assert trained.inputs == Pixels(size=(16, 16), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), resample=3)
    assert main(["export", "in", "out"]) == 0
    again = type(theirs).from_pretrained("out").config
    assert (again.id2label, again.label2id) == (theirs.config.id2label, theirs.config.label2id)
    assert json.loads(Path("out/preprocessor_config.json").read_text()) == said
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


@pytest.mark.filterwarnings("ignore")  # PEFT uses what transformers has renamed
def test_adapters_are_pefts_both_ways(tmp_path):
    saved_vit(tmp_path / "base", num_labels=5)
    images = torch.randn(2, 3, 16, 16)
    imported = read_folder(tmp_path / "base")
    ours = read(tmp_path / "base")
    LoRA(rank=3, alpha=5).apply(ours, adapt_only=True)
    randomise_adapters(ours)
    write_adapter(tmp_path / "adapter", ours, imported.family, heads=4, base=tmp_path / "base")
    base = transformers.ViTForImageClassification.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images).logits, **CLOSE)
        theirs.save_pretrained(tmp_path / "again")
        torch.testing.assert_close(read(tmp_path / "again")(images), ours(images), **CLOSE)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_act": "mish"}, "its hidden_act is mish"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "its architectures say ViTForMaskedImageModeling"),
        ({"image_size": 20}, "position_embeddings is .1, 17, 32., and the config makes .* .26, 32."),
        ({"patch_size": 2, "image_size": 8}, "projection.weight is .32, 3, 4, 4., and the config makes .*32, 12."),
        ({"id2label": {"0": "one", "1": "two", "2": "three"}}, "classifier.weight is .2, 32."),
        ({"num_hidden_layers": 3}, "lacks the weight vit.encoder.layer.2.attention"),
        ({"num_hidden_layers": 1}, "has weights for which its config.json has no place"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_folder_is_told(change, message):
    saved_vit("in")
    config = json.loads(Path("in/config.json").read_text())
    Path("in/config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        load_trained("in")


@pytest.mark.parametrize(
    "command, message",
    [
        (["train", "init_from=in", "logger=none", "trainer.accelerator=cpu"], "set embedding=default"),
        (["generate", "in", "a prompt"], "in "),
        (["eval", "in"], "in has no data of its own: type data="),
        (["export", "in", "out", "--family", "bert"], "bert has no counterpart of embedding=patches"),
        (["export", "in", "out", "--family", "deit"], "deit has no counterpart of embedding.distillation_token=false"),
    ],
    ids=str,
)
def test_what_reads_text_says_so(command, message, capsys):
    saved_vit("in")
    Path("in/preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
    assert main(command) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
