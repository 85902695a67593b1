"""`txtrain eval --plots` of every task: which files there are, what is in them, and where else they are shown."""

import errno
import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests import forked
from tests.offline_wandb import read
from tests.task.examples import TEXT, write_labelled, write_tagged
from txtrain.cli import main
from txtrain.data.digits import Digits
from txtrain.data.order import fair_sample
from txtrain.plots import folder as plots_folder
from txtrain.plots import gallery
from txtrain.trained import load_trained

ROOT = Path(__file__).parents[2]
SMALL = ["model.dim=16", "model.num_layers=2", "model.num_heads=2", "trainer.accelerator=cpu"]
SMALL += ["trainer.max_steps=2", "trainer.limit_val_batches=1"]
TOKENS = ["tokenizer.vocab_size=400"]
SOUND = ["data=audio_folder", "data.features.num_mels=20", "data.batch_size=8", "data.max_seconds=1"]
SOUND += ["data.validation_fraction=0.4"]
COMMON = ["attention", "encoding", "samples"]
TASKS = {  # what is typed, and the pictures beside those that all have
    "causal_lm": (["data=text", f"data.path={TEXT}", "data.seq_len=24", "logger=tensorboard", *TOKENS], COMMON),
    "image_classification": (["embedding.patch_size=2", "logger=wandb"], [*COMMON, "confusion"]),
    "translation": (
        ["data=pairs", "data.path=pairs.tsv", "data.batch_tokens=128", "encoding=t5", *TOKENS],
        [f"{name}_{stack}" for name in ("attention", "encoding") for stack in ("encoder", "decoder")]
        + ["attention_cross", "samples"],
    ),
    "speech_recognition": (["data.path=said.jsonl", *SOUND], [*COMMON, "spectrogram"]),
}
OTHERS = {
    "masked_lm": (["data=text", f"data.path={TEXT}", "data.seq_len=24", *TOKENS], COMMON),
    "masked_lm pairs": (["task=masked_pairs", "data=text", f"data.path={TEXT}", "data.seq_len=24", *TOKENS], COMMON),
    "sequence_classification": (
        ["data=labelled", "data.path=labelled.jsonl", "encoding=none", *TOKENS],
        ["attention", "confusion", "samples"],
    ),
    "token_classification": (
        ["data=tagged", "data.path=tagged.jsonl", "encoding=alibi", *TOKENS],
        [*COMMON, "confusion"],
    ),
    "audio_classification": (["data.path=classes", *SOUND], [*COMMON, "confusion", "spectrogram"]),
    "audio_classification patches": (
        ["data.path=classes", "embedding=spectrogram_patches", *SOUND],
        [*COMMON, "confusion", "spectrogram"],
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with small data."""
    place, random = tmp_path_factory.mktemp("plots"), np.random.default_rng(0)
    rows = []
    for number in range(24):
        letter = "ab"[number % 2]
        tone = np.sin(2 * math.pi * {"a": 300, "b": 1200}[letter] * np.arange(4000) / 16000) * random.uniform(0.2, 0.6)
        path = place / "classes" / letter / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone, 16000)
        rows.append(json.dumps({"file": str(path), "text": letter}))
    (place / "said.jsonl").write_text("\n".join(rows) + "\n")
    lines = [line.strip() for line in dict.fromkeys(TEXT.read_text().splitlines()) if len(line.strip()) > 5][:40]
    (place / "pairs.tsv").write_text("".join(f"{line}\t{line.upper()}\n" for line in lines))
    write_labelled(place / "labelled.jsonl")
    write_tagged(place / "tagged.jsonl")
    return place


@pytest.fixture(autouse=True)
def here(place, monkeypatch, no_wandb_account):
    monkeypatch.setenv("TXTRAIN_CACHE", str(place / "cache"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(place)


def trained(name):
    """The run of a task, trained once."""
    typed, run = (TASKS | OTHERS)[name][0], Path("runs", name.replace(" ", "_"))
    if not run.exists():
        task = [] if any(word.startswith("task=") for word in typed) else [f"task={name.split()[0]}"]
        logger = [] if any(word.startswith("logger=") for word in typed) else ["logger=none"]
        assert main(["train", *task, *SMALL, *typed, *logger, f"run_dir={run}"]) == 0
    return run


def evaluate(*arguments, code=0):
    assert main(["eval", *map(str, arguments), "trainer.accelerator=cpu"]) == code


def check_pictures(name, capsys):
    run = trained(name)
    capsys.readouterr()
    evaluate(run, "--plots", "--layers", "1", "--heads", "1,0", "--sample", "1")
    wanted = {str(run / "plots" / f"{picture}.png") for picture in (TASKS | OTHERS)[name][1]}
    printed = capsys.readouterr().out.splitlines()
    assert {line for line in printed if line.endswith(".png")} == wanted == set(map(str, run.glob("plots/*")))
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in wanted)


@pytest.mark.parametrize("name", ["causal_lm", "translation", "speech_recognition"])
def test_every_task_has_its_pictures(name, capsys):
    check_pictures(name, capsys)


@pytest.mark.heavy
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_tasks_have_theirs(name, capsys):
    check_pictures(name, capsys)


def test_images_have_the_pixels_of_the_data_and_the_wrong_ones_come_first(capsys, monkeypatch):
    """Numbers of the evaluation are those without pictures, and the confusion matrix is the one that was counted."""
    run, kept = trained("image_classification"), {}
    monkeypatch.setattr(plots_folder, "log_pictures", lambda *given: None)
    real, confusion = gallery.draw_pictures, gallery.draw_confusion
    monkeypatch.setattr(gallery, "draw_pictures", lambda shown, **rest: kept.update(s=shown) or real(shown, **rest))
    monkeypatch.setattr(gallery, "draw_confusion", lambda c, names: kept.update(c=c) or confusion(c, names))
    evaluate(run, "--json", "without.json")
    evaluate(run, "--plots", "--json", "with.json", "--heads", "0")
    assert Path("without.json").read_text() == Path("with.json").read_text()
    found = json.loads(Path("with.json").read_text())
    assert (
        kept["c"].trace() / kept["c"].sum() == pytest.approx(found["accuracy"]) and kept["c"].sum() == found["samples"]
    )
    right = [sample.said == sample.reference for sample in kept["s"]]
    assert right == sorted(right) and len(right) == gallery.PICTURES
    sure = [sample.probability for sample, fine in zip(kept["s"], right, strict=True) if not fine]
    assert sure == sorted(sure, reverse=True)

    from sklearn.datasets import load_digits

    digits = load_digits()
    for sample in kept["s"]:
        [number] = np.flatnonzero((np.abs(digits.images / 16 - sample.picture) < 0.01).all((1, 2)))
        assert str(digits.target[number]) == sample.reference


def test_what_is_said_of_a_few_samples_is_told_in_training():
    """The labels of images are those that the trained model finds; a prompt is refused where nobody reads it."""
    log = (trained("image_classification") / "train.log").read_text()
    [told] = re.findall(r"sample at step 2  (.*)\|(.*)", log)
    data = Digits(tokenizer=None, image_size=8, channels=1, mean=0.305, std=0.376)
    data.prepare()
    samples = data.samples("validation")
    batch = samples.batch(np.array(fair_sample(len(samples), 8)))
    guesses = load_trained("runs/image_classification").model(batch["images"]).argmax(-1)
    assert told == tuple(" · ".join(str(label) for label in labels.tolist()) for labels in (batch["targets"], guesses))
    summary = json.loads(Path("runs/image_classification/summary.json").read_text())
    assert summary["sample"] == "|".join(told)
    log = (trained("speech_recognition") / "train.log").read_text()
    assert re.search(r"sample at step 2  [ab] · [ab] · [ab]\|", log)


def test_a_prompt_that_nobody_reads_is_refused(capsys):
    assert main(["train", "task=image_classification", *SMALL, "samples.prompt=hello", "run_dir=refused"]) == 1
    assert "samples.prompt is for tasks that write texts, and ImageClassification does not" in capsys.readouterr().err


def test_w_and_b_shows_them_in_the_same_run_after_its_last_step(capsys):
    run = trained("image_classification")
    evaluate(run, "--plots", "--layers", "0", "--heads", "0")
    before = {}
    for path in run.glob("wandb/offline-run-*/*.wandb"):
        assert read(path).exit_code == 0  # its process has written all
        before[path] = path.read_bytes()
    evaluate(run, "--plots", "--layers", "0", "--heads", "0")
    assert "W&B: logged offline, send it with: wandb sync runs/image_classification/wandb" in capsys.readouterr().out
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    old, between, new = (read(path) for path in files)
    assert all(path.read_bytes() == content for path, content in before.items())  # nothing of the training is lost
    assert (new.id, old.history[-1]["_step"]) == (old.id, 2) and new.name == ""  # so the name in W&B stays
    assert [row["_step"] for row in between.history] == [3]
    [row] = new.history
    assert row["_step"] == 4
    shown = {key.split("/")[1]: value for key, value in row.items() if key.endswith("/path")}
    assert set(shown) == {"attention", "encoding", "confusion", "samples"}
    assert (files[-1].parent / "files" / shown["confusion"]).read_bytes().startswith(b"\x89PNG")


def test_tensorboard_shows_them_beside_the_losses(capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained("causal_lm")
    evaluate(run, "--plots", "--layers", "0", "--heads", "0")
    assert f"{run}/plots_2/attention.png" in capsys.readouterr().out  # earlier ones are left alone
    events = EventAccumulator(str(run / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    assert events.Tags()["images"] == ["plots/attention", "plots/encoding", "plots/samples"]
    assert {event.step for event in events.Images("plots/samples")} == {2}
    assert [event.step for event in events.Scalars("validation/loss")] == [2]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--plots", "--layers", "0,2"], "--layers 2: there is no such layer, layers are 0 to 1: type --layers 0"),
        (["--plots", "--heads", "2"], "--heads 2: there is no such head, heads are 0 to 1: type --heads 0"),
        (["--plots", "--layers=-1"], "--layers -1: there is no such layer"),
        (["--plots", "--sample", "9999999"], "--sample 9999999: there is no such sample, samples are 0 to"),
        (["--plots", "--layers", "two"], "argument --layers: two are no numbers, type them such as 0,5"),
        (["--layers", "0"], "--layers says what --plots shows: type --plots too, or leave it out"),
    ],
)
def test_a_mistake_is_one_line(arguments, told, capsys):
    run = trained("causal_lm")
    folders = len(list(run.glob("plots*")))
    capsys.readouterr()
    evaluate(run, *arguments, code=1)
    printed = capsys.readouterr().err
    assert told in printed and printed.count("\n") == 1
    assert len(list(run.glob("plots*"))) == folders


def test_a_full_disk_and_a_missing_library_are_one_line(capsys, monkeypatch):
    """The numbers are told before the disk is found to be full."""
    run = trained("causal_lm")
    capsys.readouterr()

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        evaluate(run, "--plots", "--layers", "0", "--heads", "0", code=1)
    told = capsys.readouterr()
    assert "perplexity" in told.out
    assert "cannot be written (No space left on device): make room there" in told.err and told.err.count("\n") == 1
    monkeypatch.setattr("txtrain.plots.canvas.find_spec", lambda name: None)
    evaluate(run, "--plots", code=1)
    assert (
        "--plots needs matplotlib, which is not installed: type pip install 'txtrain[plots]'" in capsys.readouterr().err
    )


def test_without_a_run_they_are_written_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plots_folder.hang({"a": b"1"}, None)
    plots_folder.hang({"a": b"2"}, None)
    assert capsys.readouterr().out.split() == ["plots/a.png", "plots_2/a.png"]


@pytest.mark.heavy
def test_two_processes_draw_the_same(capsys, place):
    """Each sample is guessed by one of them, and the tables are told by the first."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name, strategy in (("image_classification", "fsdp"), ("translation", "ddp"), ("causal_lm", "fsdp")):
        run = trained(name)
        evaluate(run, "--plots", "--heads", "0")
        two = ["-m", "txtrain", "eval", str(run), "--plots", "--heads", "0", "trainer.accelerator=cpu"]
        two += ["trainer.devices=2", f"strategy={strategy}"]
        done = forked.run([sys.executable, *two], cwd=place, env=environment, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        one, other = sorted(run.glob("plots*"), key=lambda path: path.stat().st_mtime)[-2:]
        assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
        for path in one.iterdir():
            first, second = (torch.from_numpy(plots_pixels(folder / path.name)) for folder in (one, other))
            assert (first - second).abs().float().mean() < 2, path.name


def plots_pixels(path):
    from txtrain.plots.canvas import as_array

    return as_array(path.read_bytes()).astype(np.int16)
