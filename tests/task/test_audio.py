"""Classification and recognition of sound from the command line: they learn, go on exactly, and count exactly."""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch

from tests import forked
from tests.task.examples import ZERO
from txtrain.audio.augment import Augment
from txtrain.audio.mel import log_mel
from txtrain.cli import main
from txtrain.data.audio_folder import AudioFolder
from txtrain.data.tokenizer import Char
from txtrain.saving import Reader, checkpoint_step, list_checkpoints

ROOT = Path(__file__).parents[2]
LETTERS = {"a": 300.0, "b": 900.0, "c": 1800.0}
SMALL = ["model.dim=32", "model.num_layers=2", "model.num_heads=2", "data.features.num_mels=20", "data.batch_size=8"]
SMALL += ["logger=none", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "data.max_seconds=1"]
TASKS = ["audio_classification", "speech_recognition"]


def tone(hertz: float, seconds: float) -> np.ndarray:
    samples = int(seconds * 16000)
    return 0.5 * np.sin(2 * math.pi * hertz * np.arange(samples) / 16000) * np.hanning(samples)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Tones as classes, and strings of tones with what they spell."""
    folder, random = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for letter, hertz in LETTERS.items():
        (folder / "classes" / letter).mkdir(parents=True)
        for i in range(12):
            clip = tone(hertz * random.uniform(0.9, 1.1), random.uniform(0.1, 0.5))
            soundfile.write(folder / "classes" / letter / f"{i}.wav", clip, 16000)
    rows = []
    for i in range(45):
        text = " ".join("".join(random.choice(list(LETTERS), random.integers(1, 3))) for _ in range(2))
        parts = [tone(LETTERS.get(letter, 0.0), 0.12) for letter in text]
        soundfile.write(folder / f"{i}.flac", np.concatenate(parts), 16000)
        rows.append({"file": f"{i}.flac", "text": text})
    (folder / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(sounds, task, run_dir, *overrides):
    path = sounds / ("classes" if task == "audio_classification" else "said.jsonl")
    own = [
        "data=audio_folder",
        f"data.path={path}",
        f"data.cache_dir={sounds / 'cache'}",
        "data.validation_fraction=0.3",
    ]
    return [f"task={task}", *own, *SMALL, f"run_dir={run_dir}", *overrides]


def train(*arguments):
    assert main(["train", *map(str, arguments)]) == 0


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def exact(row):
    return {name: value for name, value in row.items() if "second" not in name and "memory" not in name}


@pytest.mark.parametrize("task", TASKS)
def test_it_learns_and_says_so(sounds, tmp_path, task):
    # A hidden band of frequencies is all that there is of a tone.
    steps = {"audio_classification": 40, "speech_recognition": 100}[task]
    options = [f"trainer.max_steps={steps}", "optimizer.lr=1e-2", "save.every=1000", "data.augment.frequency_masks=0"]
    train(*command(sounds, task, tmp_path / "run", *options, "data.augment.time_masks=0"))
    outcome = json.loads((tmp_path / "run" / "summary.json").read_text())
    if task == "audio_classification":
        assert outcome["accuracy"] == 1.0
        assert json.loads((tmp_path / "run" / "labels.json").read_text()) == list(LETTERS)
    else:
        assert outcome["wer"] < 0.2 and outcome["cer"] < 0.1
        assert (tmp_path / "run" / "tokenizer.json").is_file()


@pytest.mark.parametrize(("task", "batches"), [*((task, []) for task in TASKS), (TASKS[1], ["data.batch_seconds=3"])])
def test_a_resumed_run_is_the_run(sounds, tmp_path, task, batches):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = [
        "trainer.max_steps=9",
        "save.every=5",
        "save.keep=10",
        "model.dropout=0.1",
        "trainer.val_check_interval=9",
    ]
    train(*command(sounds, task, whole, *options, *batches, "data.micro_batch_size=3"))
    shutil.copytree(whole, resumed)
    for checkpoint in list_checkpoints(resumed / "checkpoints"):
        if checkpoint_step(checkpoint) > 5:
            shutil.rmtree(checkpoint)
    train(f"resume={resumed}")
    assert [exact(row) for row in rows(resumed)] == [exact(row) for row in rows(whole)]
    assert len(rows(whole)) == 10
    ends = [Reader(list_checkpoints(run / "checkpoints")[0]) for run in (whole, resumed)]
    assert set(ends[0]) == set(ends[1]) and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("embedding", ["convolutions", "spectrogram_patches"])
def test_checkpointing_changes_no_number(sounds, tmp_path, task, embedding):
    if (task, embedding) == ("speech_recognition", "spectrogram_patches"):
        pytest.skip("a text needs one vector at each time")
    options = ["trainer.max_steps=3", "save.every=1000", "model.dropout=0.1", f"embedding={embedding}"]
    options += ["encoding=learned"]
    losses = []
    for policy in ("none", "full"):
        train(*command(sounds, task, tmp_path / policy, *options, f"checkpointing={policy}"))
        losses.append([row["train/loss"] for row in rows(tmp_path / policy) if "train/loss" in row])
    assert losses[0] == losses[1] and len(losses[0]) == 3


@pytest.mark.parametrize("task", TASKS)
def test_adapters_alone_train_on_a_trained_model(sounds, tmp_path, task):
    train(*command(sounds, task, tmp_path / "base", "trainer.max_steps=5", "save.every=1000"))
    base = f"init_from={tmp_path / 'base'}"
    train(*command(sounds, task, tmp_path / "run", base, "lora.rank=2", "trainer.max_steps=4", "save.every=1000"))
    outcome = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert outcome["trainable_parameters"] < outcome["parameters"] / 5
    losses = [row["validation/loss"] for path in ("base", "run") for row in rows(tmp_path / path)[-1:]]
    assert losses[1] < losses[0]


def launched(sounds, task, folder, *overrides):
    """The numbers of a run in processes of its own."""
    words = command(sounds, task, folder / "run", *overrides, "trainer.max_steps=3", "save.every=1000")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(ROOT / "train.py"), *words]
    done = forked.run(line, cwd=folder, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return rows(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("strategy", ["ddp", *(pytest.param(name, marks=pytest.mark.heavy) for name in ZERO)])
def test_two_devices_count_as_one_does(sounds, tmp_path, task, strategy):
    options = ["optimizer=sgd", "optimizer.lr=0.1", "data.batch_size=7"]  # which two devices cannot share equally
    options += ["data.batch_seconds=3"] if task == "speech_recognition" else []
    (tmp_path / "two").mkdir()
    train(*command(sounds, task, tmp_path / "one", *options, "trainer.max_steps=3", "save.every=1000"))
    two = launched(sounds, task, tmp_path / "two", *options, "trainer.devices=2", *f"strategy={strategy}".split())
    for mine, other in zip(rows(tmp_path / "one"), two, strict=True):
        numbers = {name for name in mine if name.startswith("validation") or name in ("train/loss", "train/frames")}
        assert {n: other[n] for n in numbers} == pytest.approx({n: mine[n] for n in numbers}, rel=1e-5)


@pytest.fixture(scope="module")
def trained(sounds, tmp_path_factory):
    """A run of each task that has learned it."""
    folder = tmp_path_factory.mktemp("trained")
    for task, steps in (("audio_classification", 40), ("speech_recognition", 75)):
        options = [f"trainer.max_steps={steps}", "optimizer.lr=1e-2", "save.every=1000", "trainer.log_every_n_steps=50"]
        options += ["data.augment.frequency_masks=0", "data.augment.time_masks=0"]
        train(*command(sounds, task, folder / task, *options))
    return folder


def predicted(capsys, *words):
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_predictions_are_those_of_validation(sounds, trained, capsys):
    told = predicted(capsys, trained / "audio_classification", sounds / "classes", "--batch-size", 5)
    assert len(told) == 36 and all(line["label"] == Path(line["file"]).parent.name for line in told)
    assert all(sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5) for line in told)
    alone = predicted(capsys, trained / "audio_classification", told[7]["file"], "top=1")
    assert list(alone[0]["probabilities"].values()) == pytest.approx([max(told[7]["probabilities"].values())], rel=1e-4)


def test_transcripts_have_the_error_rate_of_validation(sounds, trained, capsys, monkeypatch):
    monkeypatch.chdir(sounds)
    entries = AudioFolder(
        path="said.jsonl", validation_fraction=0.3, features=log_mel(num_mels=20), augment=Augment(), tokenizer=Char()
    ).entries
    held_out = {entry.file.name: entry.said for entry, out in entries if out}
    told = predicted(capsys, trained / "speech_recognition", *held_out)
    said, heard = [held_out[line["file"]] for line in told], [line["transcript"] for line in told]
    outcome = json.loads((trained / "speech_recognition" / "summary.json").read_text())
    assert outcome["cer"] < 1, "the test is about a model that hears something"
    assert jiwer.wer(said, heard) == pytest.approx(outcome["wer"], abs=1e-9)
    assert jiwer.cer(said, heard) == pytest.approx(outcome["cer"], abs=1e-9)
    monkeypatch.chdir(trained)  # names in a table are relative to it, wherever one is
    searched = predicted(capsys, trained / "speech_recognition", sounds / "said.jsonl", "beams=8")
    assert len(searched) == 45 and {"file", "text", "transcript"} <= set(searched[0])


@pytest.mark.parametrize("task", TASKS)
def test_an_evaluation_has_the_numbers_of_the_run(sounds, trained, tmp_path, task):
    outcome = json.loads((trained / task / "summary.json").read_text())
    assert main(["eval", str(trained / task), "--json", str(tmp_path / "eval.json"), "trainer.accelerator=cpu"]) == 0
    numbers = json.loads((tmp_path / "eval.json").read_text())
    names = ["loss", "accuracy", "f1"] if task == "audio_classification" else ["loss", "wer", "cer"]
    for name in names:
        assert numbers[name] == pytest.approx(outcome["validation_loss" if name == "loss" else name], rel=1e-6)


def test_batches_of_one_length_change_no_number(sounds, trained, tmp_path):
    """Nor does how many clips go through at a time."""
    found, own = [], ["data=audio_folder", f"data.path={sounds / 'said.jsonl'}", "trainer.accelerator=cpu"]
    for words in ([], ["data.batch_seconds=2"], ["data.batch_size=3", "data.batch_seconds=1"], ["data.batch_size=1"]):
        words = [*words, *own, "--json", str(tmp_path / "eval.json")]
        assert main(["eval", str(trained / "speech_recognition"), *words]) == 0
        found.append(json.loads((tmp_path / "eval.json").read_text()))
    for other in found[1:]:
        assert (other["wer"], other["cer"]) == (found[0]["wer"], found[0]["cer"])
        assert other["loss"] == pytest.approx(found[0]["loss"], rel=1e-6)


def test_other_clips_are_evaluated_whole_with_the_labels_of_the_run(sounds, trained, tmp_path, capsys):
    for letter in "ab":
        shutil.copytree(sounds / "classes" / letter, tmp_path / "own" / letter)
    (tmp_path / "own" / "a" / "broken.wav").write_bytes(b"no sound")
    soundfile.write(tmp_path / "own" / "b" / "faster.wav", tone(900.0, 0.3).repeat(2), 32000)
    words = ["eval", str(trained / "audio_classification"), "data=audio_folder", f"data.path={tmp_path / 'own'}"]
    capsys.readouterr()
    assert main([*words, "--json", str(tmp_path / "eval.json"), "trainer.accelerator=cpu"]) == 0
    found, told = json.loads((tmp_path / "eval.json").read_text()), capsys.readouterr().out
    assert (found["accuracy"], found["samples"]) == (1.0, 25)
    assert "1 files are left out: " in told and "broken.wav (Format not recognised.)" in told
    assert "to 16000 Hz: 1 from 32000 Hz" in told
    assert main([*words, "trainer.accelerator=cpu", "data.on_bad=stop"]) == 1
    assert "broken.wav cannot be read" in capsys.readouterr().err


def test_a_file_that_is_no_sound_is_one_line(trained, tmp_path, capsys):
    (tmp_path / "x.wav").write_bytes(b"nothing")
    for task in TASKS:
        assert main(["predict", str(trained / task), str(tmp_path / "x.wav")]) == 1
        assert "x.wav cannot be read" in capsys.readouterr().err
