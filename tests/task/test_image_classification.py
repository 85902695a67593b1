"""Classification of images: the loss of mixtures, options in pairs, and whole runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.interop.test_vit import saved_vit
from tests.pairwise import pairwise
from tests.task.examples import ZERO
from tests.test_options import compose
from txtrain.cli import main
from txtrain.config import config_directory, options
from txtrain.data.digits import Digits
from txtrain.data.pixels import Pixels
from txtrain.model.head import Loss
from txtrain.saving import Reader
from txtrain.task.image_classification import ImageClassification
from txtrain.train import model_function

TINY = [
    "task=image_classification",
    "model.dim=24",
    "model.num_layers=2",
    "model.num_heads=3",
    "embedding.patch_size=2",
]
ROWS_GRIDS = [f"encoding={name}" for name in options(config_directory(), "encoding") if name not in ("fire", "xpos")]
AXES = {
    "encoding": ROWS_GRIDS,
    "norm": [f"norm={name}" for name in options(config_directory(), "norm")],
    "attention": ["attention=full", "attention=sliding attention.window=6", "attention.qk_norm=head"],
    "ffn": [f"ffn={name}" for name in options(config_directory(), "ffn")],
    "checkpointing": [f"checkpointing={name}" for name in options(config_directory(), "checkpointing")],
    "head": ["head=class_token", "head=mean", "head=mean embedding.class_token=false", "head.transform=tanh"],
    "lora": ["lora.rank=0", "lora.rank=4", "lora.rank=4 lora.variant=dora"],
    "mixing": ["data.mixing.mixup=0", "data.mixing.mixup=0.2", "data.mixing.mixup=0.2 data.mixing.cutmix=1"],
    "path": ["model.drop_path=0", "model.drop_path=0.2 model.dropout=0.1"],
}
PAIRS = pairwise(AXES)


def new_task(loss):
    """Without a trainer: what it computes of a batch."""
    task = ImageClassification.__new__(ImageClassification)
    torch.nn.Module.__init__(task)
    task.loss = loss
    return task


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1}, {"label_smoothing": 0.2, "z_loss": 1e-2}])
def test_the_loss_of_a_mixture_is_that_of_its_share_of_two_labels(settings):
    """Against torch's own cross-entropy with probabilities, in float64."""
    logits = torch.randn(5, 7)
    task = new_task(Loss(**settings))
    task.logits = lambda batch: logits
    targets, others = torch.tensor([0, 3, 6, 2, -100]), torch.tensor([1, 3, 0, 5, -100])
    shares = torch.tensor([0.3, 0.9, 1.0, 0.0, 1.0])
    objective, entropy = task.losses({"targets": targets, "others": others, "shares": shares})
    wanted = shares[:4, None] * F.one_hot(targets[:4], 7) + (1 - shares[:4, None]) * F.one_hot(others[:4], 7)
    real = logits[:4].double()
    expected = F.cross_entropy(
        real, wanted.double(), reduction="sum", label_smoothing=settings.get("label_smoothing", 0)
    )
    expected += settings.get("z_loss", 0) * real.logsumexp(-1).square().sum()
    torch.testing.assert_close(objective.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, F.cross_entropy(real, wanted.double(), reduction="sum"), rtol=1e-5, atol=1e-5)


def test_five_guesses_are_counted_where_there_are_more_labels():
    logits = torch.tensor([[0.0, 6, 5, 4, 3, 2], [9, 1, 1, 1, 1, 0], [1, 2, 3, 4, 5, 6.0]])
    counted = new_task(Loss()).count(logits, torch.tensor([0, 5, 1]))
    assert counted["first"] == 1
    assert counted["confusions"].diagonal().tolist() == [0] * 6
    assert "first" not in new_task(Loss()).count(logits[:, :5], torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: ",".join(row.values()).replace(" ", ","))
def test_every_pair_of_options_trains(row):
    config = compose(*TINY, "data.augment.rotate=0", "data.augment.shift=0", *row.values())
    parts = {group: instantiate(node, _convert_="all") for group, node in config.items() if OmegaConf.is_config(node)}
    data = parts["data"](tokenizer=None, seed=0)
    data.prepare()
    torch.manual_seed(0)
    model = model_function(parts)(**data.sizes())
    parts["lora"].apply(model)
    parts["checkpointing"].apply(model)
    task = new_task(parts["loss"])
    task.model = model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    batch, losses = data.samples("train").batch(np.arange(24)), []
    for _ in range(25):  # learns a batch by heart
        objective, _ = task.losses(batch)
        optimizer.zero_grad()
        objective.div(24).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, f"{name} receives no gradient"
                assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        optimizer.step()
        losses.append(objective.item() / 24)
    assert min(losses[-5:]) < losses[0] - 0.15


RUN = [*TINY, "logger=none", "trainer.accelerator=cpu", "trainer.val_check_interval=4", "trainer.log_every_n_steps=1"]
RUN += ["data.batch_size=16", "save.every=4", "schedule=constant", "schedule.warmup=2", "trainer.limit_val_batches=4"]
CHANGES = ["data.mixing.mixup=0.2", "data.mixing.cutmix=1", "data.augment.erase=0.3", "data.augment.operations=1"]
CHANGES += ["model.drop_path=0.2", "ema.decay=0.9"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))


def rows(run):
    found = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    timed = ("images_per_second", "memory_bytes", "mfu", "seconds")
    return [{key: value for key, value in row.items() if not key.endswith(timed)} for row in found]


def weights(run):
    reader = Reader(Path(run, "checkpoints/last").resolve())
    return {name: reader[name] for name in reader}


def test_a_run_goes_on_exactly_whatever_is_random_in_it(capsys):
    """Mixtures, RandAugment, holes, drop path and averages: eight steps are four and four."""
    assert main(["train", *RUN, *CHANGES, "trainer.max_steps=8", "run_dir=whole"]) == 0
    assert main(["train", *RUN, *CHANGES, "trainer.max_steps=4", "run_dir=cut"]) == 0
    assert main(["train", "resume=cut", "trainer.max_steps=8"]) == 0
    assert rows("cut") == rows("whole")
    for name, value in weights("whole").items():
        assert torch.equal(weights("cut")[name], value), name
    told = capsys.readouterr().out
    assert "1433 images to train on, 364 to validate; 8 × 8 × 1" in told
    assert "10: 3 146 (10%)" in told
    outcome = json.loads(Path("whole/summary.json").read_text())
    assert {"accuracy", "f1", "matthews", "top_5"} <= outcome.keys()
    counts = torch.tensor(outcome["confusions"])
    assert counts.sum() == 64  # of limit_val_batches=4
    assert counts.diagonal().sum() / counts.sum() == pytest.approx(outcome["accuracy"])
    assert "recall, lowest first" in told


def test_memory_is_saved_and_nothing_else_changes():
    fixed = ["model.dropout=0.1", "data.mixing.mixup=0.2", "trainer.max_steps=3", "trainer.val_check_interval=3"]
    for name in ("none", "full"):
        assert main(["train", *RUN, *fixed, f"checkpointing={name}", f"run_dir={name}"]) == 0
    assert rows("full") == rows("none")


def test_a_trained_model_is_adapted_to_another_resolution(capsys):
    assert main(["train", *RUN, "trainer.max_steps=4", "run_dir=first"]) == 0
    larger = ["task=image_classification", "init_from=first", "data.image_size=12", "lora.rank=4", *RUN[len(TINY) :]]
    assert main(["train", *larger, "trainer.max_steps=4", "run_dir=second"]) == 0
    assert "12 × 12 × 1" in capsys.readouterr().out
    names = {name.removeprefix("model/") for name in weights("second") if name.startswith("model/")}
    assert {name for name in names if "lora_" not in name} <= {"head.linear.weight", "head.linear.bias"}


def test_a_vit_of_hugging_face_learns_other_labels_and_sees_images_as_it_did(capsys):
    theirs = saved_vit("in", num_labels=3, hidden_size=24, num_attention_heads=3)
    said = {"size": {"height": 16, "width": 16}, "resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4] * 3}
    Path("in/preprocessor_config.json").write_text(json.dumps(said))
    words = ["train", "task=image_classification", "init_from=in", "lora.rank=2", *RUN[len(TINY) :]]
    assert main([*words, "trainer.max_steps=2", "data.std=0.5", "run_dir=run"]) == 0
    assert "16 × 16 × 3" in capsys.readouterr().out
    kept = Pixels.read(Path("run"))
    assert kept == Pixels(size=(16, 16), channels=3, mean=(0.1, 0.2, 0.3), std=(0.5,) * 3, resample=3)
    found = weights("run")
    assert found["model/head.linear.weight"].shape == (10, 24)
    assert all("lora" in name or "head" in name for name in found)
    assert main(["export", "run", "out"]) == 0
    again = type(theirs).from_pretrained("out")
    assert again.config.id2label[9] == "9"
    assert torch.equal(again.vit.embeddings.cls_token, theirs.vit.embeddings.cls_token)
    # Its own head is evaluated on images with its labels, as it sees them.
    for label in ("LABEL_0", "LABEL_2"):
        Path("pictures", label).mkdir(parents=True)
        Image.new("RGB", (20, 16), (40, 90, 200)).save(f"pictures/{label}/1.png")
    assert main(["eval", "in", "data=image_folder", "data.path=pictures", "--json", "told.json"]) == 0
    pixels = Pixels.of_folder(Path("in"), size=(16, 16), channels=3)(Image.new("RGB", (20, 16), (40, 90, 200)))
    with torch.no_grad():
        chances = theirs(pixels[None]).logits.log_softmax(-1)[0]
    told = json.loads(Path("told.json").read_text())
    assert told["loss"] == pytest.approx(-(chances[0] + chances[2]).item() / 2, rel=1e-4)


@pytest.mark.parametrize(
    "words, message",
    [
        (["task=image_classification", "data=stdlib"], "it is data.image_size, which the chosen data has not"),
        (["data=digits"], "the data are labelled images"),
        (["task=image_classification", "encoding=fire"], "encoding=fire knows no positions on a grid"),
        (["task=image_classification", "head=default"], "head=default and head=transform score the tokens"),
        (["task=image_classification", "embedding.patch_size=9"], "embedding.patch_size=9 is larger than"),
        (["task=image_classification", "data=image_folder"], "data.path is needed"),
        (["task=image_classification", "data=image_folder", "data.path=nowhere"], "data.path=nowhere does not exist"),
        (
            ["task=image_classification", "ema.decay=0.9", "trainer.precision=bf16-true"],
            "ema.decay needs weights in float32",
        ),
        (["ema.decay=0.9", "lora.rank=2", "lora.merge_every=5"], "ema.decay averages weights into which"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_a_line(words, message, capsys):
    assert main(["train", *words, "logger=none", "trainer.accelerator=cpu"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


VIT = ["norm.layer=layernorm", "norm.bias=true", "ffn=gelu", "ffn.bias=true", "attention.bias=true"]


def test_a_run_is_evaluated_predicts_and_goes_out_to_transformers(capsys):
    """The averages of its weights, on the same images."""
    assert (
        main(
            [
                "train",
                *RUN,
                *VIT,
                "ema.decay=0.9",
                "trainer.limit_val_batches=1.0",
                "trainer.max_steps=8",
                "run_dir=run",
            ]
        )
        == 0
    )
    outcome = json.loads(Path("run/summary.json").read_text())
    capsys.readouterr()
    assert main(["eval", "run", "--json", "told.json"]) == 0
    assert json.loads(Path("told.json").read_text())["loss"] == pytest.approx(outcome["validation_loss"], rel=1e-5)
    assert main(["export", "run", "out"]) == 0
    assert "out: vit, " in capsys.readouterr().out
    theirs = transformers.AutoModelForImageClassification.from_pretrained("out").eval()
    assert theirs.config.id2label == {digit: str(digit) for digit in range(10)}
    processor = ViTImageProcessorPil.from_pretrained("out")
    data = Digits(tokenizer=None, image_size=8, channels=1, mean=0.305, std=0.376)
    Path("pictures").mkdir()
    for entry in data.entries()[:3]:
        data.image(entry).save(f"pictures/{entry.group}.png")
    assert main(["predict", "run", "pictures", "top=2"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for number, line in enumerate(told):
        pixels = processor(Image.open(f"pictures/{number}.png"), return_tensors="pt").pixel_values
        with torch.no_grad():
            chances = theirs(pixels.float()).logits.softmax(-1)[0]
        assert line["file"] == f"pictures/{number}.png"
        assert line["label"] == str(int(chances.argmax()))
        assert list(line["probabilities"].values()) == pytest.approx(chances.topk(2).values.tolist(), abs=1e-5)
    Path("pictures/table.csv").write_text("file,who\n2.png,me\n")  # a name in a table is relative to it
    Path("pictures/names.txt").write_text(f"2.png\n{Path('pictures/1.png').absolute()}\n")
    assert main(["predict", "run", "pictures/table.csv", "pictures/names.txt", "top=2"]) == 0
    named = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["label"] for line in named] == [told[2]["label"], told[2]["label"], told[1]["label"]]
    assert (named[0]["file"], named[0]["who"]) == ("2.png", "me")
    Path("pictures/bad.png").write_bytes(b"")
    assert main(["predict", "run", "pictures/bad.png"]) == 1
    assert "bad.png cannot be read" in capsys.readouterr().err


@pytest.mark.heavy
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", *ZERO])
def test_two_processes_train_and_evaluate_as_one(strategy, tmp_path):
    """The same losses, and the same images of each class taken for each, in all of the validation set."""
    fixed = [*RUN, "trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.limit_val_batches=1.0"]
    fixed += ["data.mixing.mixup=0.2", "optimizer.eps=1e-6", "lora.rank=0", "ema.decay=0.8"]
    for run, words in {"one": [], "two": ["trainer.devices=2", *f"strategy={strategy}".split()]}.items():
        command = [sys.executable, "-m", "txtrain", "train", *fixed, *words, f"run_dir={run}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (json.loads(Path(run, "summary.json").read_text()) for run in ("one", "two"))
    assert sum(map(sum, two["confusions"])) == 364
    assert two["confusions"] == one["confusions"]
    for first, second in zip(rows("one"), rows("two"), strict=True):
        assert second == pytest.approx(first, rel=1e-4, abs=1e-5)


@pytest.mark.heavy
def test_a_quarter_of_the_recipe_reads_97_of_100_digits():
    words = ["experiment=vit_digits", "trainer.max_steps=550", "logger=none", "trainer.accelerator=cpu", "run_dir=run"]
    assert main(["train", *words]) == 0
    assert json.loads(Path("run/summary.json").read_text())["accuracy"] >= 0.97
