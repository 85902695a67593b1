"""The user's own sound: folders and tables, the split, and every mistake as one line with its file."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch

from txtrain.audio.augment import Augment
from txtrain.audio.mel import log_mel
from txtrain.data.audio_folder import AudioFolder
from txtrain.data.packing import IGNORED, PADDING
from txtrain.data.tokenizer import Char
from txtrain.errors import UserError


def write(path, seconds=0.3, hertz=440.0, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * np.sin(2 * math.pi * hertz * np.arange(int(seconds * rate)) / rate), rate)
    return path


def folder(path, count=10, **kinds):
    """A folder of classes with tones in them."""
    for number, (label, hertz) in enumerate((kinds or {"high": 900.0, "low": 300.0}).items()):
        for i in range(count):
            write(path / label / f"{i}.wav", seconds=0.2 + 0.05 * (i % 4) + 0.01 * number, hertz=hertz + i)
    return path


def data(path, tmp_path, augment=None, **options):
    features = log_mel(num_mels=20)
    return AudioFolder(
        path=str(path),
        features=features,
        augment=augment or Augment(),
        tokenizer=Char(),
        cache_dir=str(tmp_path / "cache"),
        **options,
    )


def prepared(*args, **options):
    made = data(*args, **options)
    made.prepare()
    return made


def table(tmp_path, rows, name="said.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_of_classes(tmp_path):
    made = prepared(folder(tmp_path / "own"), tmp_path)
    assert made.labels == ["high", "low"] and made.content == "labelled sound"
    assert made.sizes() == {"num_mels": 20, "max_frames": 1000, "num_labels": 2}
    assert [len(made.samples(split)) for split in ("train", "validation")] == [18, 2]  # a tenth of each class
    batch = made.samples("train").batch(np.array([0, 17, PADDING]))
    assert batch["frames"].shape[::2] == (3, 20)
    assert batch["targets"].tolist() == [0, 1, IGNORED] and batch["lengths"][2] == 1
    assert "high 9" in made.details()["classes"] and "unreadable" not in made.details()
    run = tmp_path / "run"
    run.mkdir()
    made.save(run)
    made.check_saved(run)
    assert json.loads((run / "labels.json").read_text()) == ["high", "low"]


def test_files_of_any_rate_and_kind_are_resampled_and_said(tmp_path):
    path = folder(tmp_path / "own", count=3)
    write(path / "low" / "other.flac", rate=44100)
    write(path / "low" / "another.mp3", rate=22050)
    made = prepared(path, tmp_path)
    assert made.details()["resampled"] == "to 16000 Hz: 1 from 22050 Hz, 1 from 44100 Hz"
    lengths = {clip.source.rsplit("/", 1)[1]: clip.samples for part in made.clips.values() for clip in part}
    assert lengths["other.flac"] == 4800


@pytest.mark.parametrize("on_bad", ["skip", "stop"])
def test_a_file_that_cannot_be_read_is_left_out_and_counted_or_ends_it(tmp_path, on_bad):
    path = folder(tmp_path / "own")
    (path / "low" / "broken.wav").write_bytes(b"RIFF of nothing")
    if on_bad == "stop":
        with pytest.raises(UserError, match=r"low/broken\.wav cannot be read.*data\.on_bad=skip"):
            prepared(path, tmp_path, on_bad=on_bad)
    else:
        made = prepared(path, tmp_path, on_bad=on_bad)
        assert made.details()["unreadable"].startswith("1 files are left out")
        assert "low/broken.wav" in made.details()["unreadable"]
        assert sum(len(clips) for clips in made.clips.values()) == 20
        again = prepared(path, tmp_path, on_bad=on_bad)  # from the cache
        assert again.details() == made.details()


@pytest.mark.parametrize(
    "spoil, line",
    [
        (lambda path: (path / "empty").mkdir(), r"class .*own/empty is empty"),
        (lambda path: write(path / "loose.wav"), r"own/loose\.wav has no label"),
        (lambda path: [file.unlink() for file in (path / "low").iterdir()], r"class .*own/low is empty"),
    ],
    ids=["empty class", "label missing", "class without files"],
)
def test_a_folder_that_is_wrong_is_one_line_with_its_name(tmp_path, spoil, line):
    path = folder(tmp_path / "own")
    spoil(path)
    with pytest.raises(UserError, match=line) as told:
        prepared(path, tmp_path)
    assert "\n" not in str(told.value)


def test_a_class_of_which_no_file_can_be_read_is_refused(tmp_path):
    path = folder(tmp_path / "own", mid=600.0, high=900.0, low=300.0)
    for file in (path / "mid").iterdir():
        file.write_bytes(b"no sound")
    with pytest.raises(UserError, match=r"no file of the class mid can be read: .*own/mid/0\.wav \(Format"):
        prepared(path, tmp_path)


def test_a_link_to_nowhere_is_counted_among_what_cannot_be_read(tmp_path):
    path = folder(tmp_path / "own")
    (path / "low" / "link.wav").symlink_to("nowhere.wav")
    told = prepared(path, tmp_path).details()["unreadable"]
    assert told.startswith("1 files") and "low/link.wav (it is not there)" in told


def test_one_class_only_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.path=.*own has only the label low"):
        prepared(folder(tmp_path / "own", low=300.0), tmp_path)


def test_a_class_of_validation_that_training_lacks_is_refused(tmp_path):
    other = folder(tmp_path / "other", high=900.0, new=100.0)
    with pytest.raises(UserError, match=r"other/new/0\.wav has the label new"):
        prepared(folder(tmp_path / "own"), tmp_path, validation_path=str(other))


def test_a_table_of_transcripts(tmp_path):
    rows = [{"file": f"clips/{i}.wav", "text": f"say  {'ab'[i % 2]}\n{i} "} for i in range(10)]
    for i in range(10):
        write(tmp_path / "clips" / f"{i}.wav", seconds=0.5)
    made = prepared(table(tmp_path, rows), tmp_path)
    assert made.transcribed and made.content == "transcribed sound"
    assert set(made.sizes()) == {"num_mels", "max_frames", "vocab_size"}
    samples = made.samples("train")
    batch = samples.batch(np.array([0, PADDING, 3]))
    assert made.tokenizer.decode(batch["targets"][0].tolist()) == made.said("train", [0])[0] == "say a 0"
    assert (batch["targets"][1] == IGNORED).all()
    assert {clip.said for clip in (*made.clips["train"], *made.clips["validation"])} == {
        f"say {'ab'[i % 2]} {i}" for i in range(10)
    }


def test_a_speaker_is_on_one_side_of_the_split(tmp_path):
    rows = [{"file": f"{i}.wav", "text": "hello", "speaker": f"s{i % 5}"} for i in range(30)]
    for i in range(30):
        write(tmp_path / f"{i}.wav")
    made = prepared(table(tmp_path, rows), tmp_path, validation_fraction=0.4)
    speakers = [{int(clip.source.rsplit("/", 1)[1][:-4]) % 5 for clip in clips} for clips in made.clips.values()]
    assert [len(found) for found in speakers] == [3, 2] and not speakers[0] & speakers[1]


def test_what_cannot_be_recognised_is_left_out_and_told(tmp_path):
    said = {"fine": 0.5, "long": 2.0, "much": 0.2}
    rows = [
        {"file": f"{name}{i}.wav", "text": "word " * (20 if name == "much" else 1)} for name in said for i in range(3)
    ]
    for row in rows:
        write(tmp_path / row["file"], seconds=said[row["file"][:4]])
    made = prepared(table(tmp_path, rows), tmp_path, max_seconds=1.0, validation_fraction=0.5)
    assert sum(len(clips) for clips in made.clips.values()) == 3
    assert made.details()["left out"] == (
        "3 clips longer than data.max_seconds=1, 3 clips with more text than anybody says in their time"
    )


@pytest.mark.parametrize(
    "rows, line",
    [
        ([{"file": "a.wav", "text": "a"}, {"file": "gone.wav", "text": "b"}], r"line 2: .*gone\.wav does not exist"),
        ([{"file": "a.wav", "text": "a"}, {"file": "a.wav", "text": " "}], r"line 2: a\.wav has no text"),
        ([{"file": "a.wav", "label": "a"}, {"file": "a.wav", "label": ""}], r"line 2: label is nothing, not a label"),
        ([{"path": "a.wav", "text": "a"}], r"line 1 has no file, but path, text"),
        ([{"file": "a.wav", "words": "a"}], r"has no text and no label: set data\.text"),
        ([], r"has no row"),
    ],
)
def test_a_table_that_is_wrong_is_one_line_with_its_place(tmp_path, rows, line):
    write(tmp_path / "a.wav")
    with pytest.raises(UserError, match=line):
        prepared(table(tmp_path, rows), tmp_path)


def test_a_table_of_labels_in_columns(tmp_path):
    for i in range(6):
        write(tmp_path / f"{i}.wav")
    lines = ["file\tlabel", *(f"{i}.wav\t{i % 2}" for i in range(6))]
    (tmp_path / "t.tsv").write_text("\n".join(lines))
    assert prepared(tmp_path / "t.tsv", tmp_path).labels == ["0", "1"]


def test_batches_are_functions_of_seed_epoch_and_sample(tmp_path):
    augment = Augment(speed=0.1, time_warp=3, frequency_masks=1, frequency_width=5, time_masks=1)
    path = folder(tmp_path / "own")
    samples = prepared(path, tmp_path, augment, max_seconds=0.25, seed=3).samples("train")
    one, other = (samples.batch(np.array(rows), epoch=1) for rows in ([4, 7, 9], [9, PADDING, 4]))
    for here, there in ((0, 2), (2, 0)):
        length = int(one["lengths"][here])
        assert length == other["lengths"][there]
        torch.testing.assert_close(one["frames"][here, :length], other["frames"][there, :length])
    again = samples.batch(np.array([4, 7, 9]), epoch=2)
    assert not torch.equal(again["frames"], one["frames"])
    validation = prepared(path, tmp_path, augment, max_seconds=0.25, seed=3).samples("validation")
    plain = prepared(path, tmp_path, Augment(), max_seconds=0.25, seed=4).samples("validation")
    assert torch.equal(validation.batch(np.arange(2))["frames"], plain.batch(np.arange(2))["frames"])


def test_long_clips_are_cropped_anywhere_in_training_and_in_the_middle_for_validation(tmp_path):
    # Each clip is a rising tone, so that the place of a crop can be heard.
    for label in ("a", "b"):
        for i in range(10):
            (tmp_path / "own" / label).mkdir(parents=True, exist_ok=True)
            sweep = np.sin(2 * math.pi * np.cumsum(np.linspace(100, 4000, 32000)) / 16000)
            soundfile.write(tmp_path / "own" / label / f"{i}.wav", sweep, 16000)
    made = prepared(tmp_path / "own", tmp_path, max_seconds=0.5)

    def loudest(split, epoch):
        batch = made.samples(split).batch(np.array([0]), epoch)
        assert batch["lengths"].tolist() == [50]
        return batch["frames"][0, 25].argmax().item()

    assert len({loudest("validation", epoch) for epoch in range(4)}) == 1
    assert len({loudest("train", epoch) for epoch in range(8)}) > 3


@pytest.mark.parametrize("fill", ["silence", "zeros"])
def test_what_fills_clips_is_heard(tmp_path, fill):
    options = {"max_seconds": 1.0, "augment": Augment(speed=0, time_masks=0, frequency_masks=0)}
    path = folder(tmp_path / "own")
    filled, masked = (
        prepared(path, tmp_path, fill=how, **options).samples("train").batch(np.array([0, 1])) for how in (fill, "mask")
    )
    assert filled["lengths"].tolist() == [100, 100]
    for row, length in enumerate(masked["lengths"].tolist()):
        same = torch.equal(filled["frames"][row, :length], masked["frames"][row, :length])
        assert same == (fill == "zeros")  # a window at the end hears some silence
        assert (filled["frames"][row, length:] == 1.0).all() == (fill == "zeros")


def test_an_evaluation_takes_the_labels_of_the_model(tmp_path):
    made = data(folder(tmp_path / "own", low=300.0), tmp_path)
    made.adopt(["high", "low", "none"])
    made.hold_out_all()
    made.prepare()
    assert made.labels == ["high", "low", "none"]
    assert len(made.samples("validation")) == 10 and len(made.samples("train")) == 0
    assert made.samples("validation").batch(np.arange(10))["targets"].tolist() == [1] * 10


def uneven(path, count=40):
    """Clips of 0.1 to 2 seconds, most of them short."""
    random = np.random.default_rng(0)
    for number in range(count):
        write(path / "ab"[number % 2] / f"{number}.wav", seconds=0.1 + 1.9 * random.random() ** 3)
    return path


@pytest.mark.parametrize("speed", [0.0, 0.2])
@pytest.mark.parametrize("fill", ["mask", "silence", "zeros"])
def test_a_step_has_at_most_so_many_seconds_of_clips_of_about_one_length(tmp_path, speed, fill):
    options = {"max_seconds": 1.5, "fill": fill, "augment": Augment(speed=speed), "validation_fraction": 0.2}
    made = prepared(uneven(tmp_path / "own"), tmp_path, batch_seconds=4.0, batch_size=12, **options)
    for split in ("train", "validation"):
        samples = made.samples(split)
        order = made.order(samples, seed=3)
        for epoch in (0, 1):
            steps = [order.samples(epoch, step).samples for step in range(order.steps)]
            assert sorted(i for found in steps for i in found.tolist()) == list(range(len(samples)))
            for found in steps:
                frames = samples.batch(found, epoch)["frames"]
                assert len(frames) <= 12
                assert len(frames) == 1 or frames.shape[0] * frames.shape[1] <= 400
    assert made.micro(2) is None and made.accumulation(2) == 1
    assert "at most 12 clips and 4 s a step" in made.batch_told(1)


def test_less_of_the_frames_is_padding(tmp_path):
    path = uneven(tmp_path / "own", count=120)
    read = {}
    for seconds in (None, 8.0):
        made = prepared(path, tmp_path, batch_seconds=seconds, batch_size=16 if seconds is None else 100)
        samples = made.samples("train")
        order = made.order(samples, seed=0)
        batches = [samples.batch(order.samples(0, step).samples) for step in range(order.steps)]
        read[seconds] = sum(batch["frames"][..., 0].numel() for batch in batches)
        real = sum(int(batch["lengths"].sum()) for batch in batches)
    assert read[8.0] < 1.25 * real < 0.5 * read[None]


@pytest.mark.parametrize("wrong", [{"batch_seconds": 0.0}, {"max_seconds": 0.05}])
def test_too_few_seconds_are_refused(tmp_path, wrong):
    [(name, value)] = wrong.items()
    with pytest.raises(UserError, match=rf"data\.{name}={value} is too short: set data\.{name}=0\.1"):
        data(folder(tmp_path / "own"), tmp_path, **wrong)


def test_steps_by_length_need_the_clips(tmp_path):
    made = data(folder(tmp_path / "own"), tmp_path, batch_seconds=2.0)
    with pytest.raises(UserError, match="the clips are gone"):
        made.order(range(18), seed=0)
