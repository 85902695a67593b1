"""Where images come from, how they are split, and what is wrong with them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from txtrain.data.augment import Augment
from txtrain.data.digits import Digits
from txtrain.data.hub_images import HubImages
from txtrain.data.image_folder import ImageFolder
from txtrain.data.mixing import Mixing
from txtrain.data.packing import PADDING
from txtrain.errors import UserError

CHANGES = {"augment": Augment(rotate=20.0, shift=0.1, operations=2, erase=0.5), "mixing": Mixing(mixup=0.5, cutmix=1.0)}


def digits(**settings):
    data = Digits(tokenizer=None, **{"image_size": 8, "channels": 1, **settings})
    data.prepare()
    return data


def save(path, seed=0, size=(12, 9), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Three classes of ten images, of several formats."""
    kinds = [".png", ".jpg", ".bmp", ".gif", ".webp", ".tiff", ".ppm", ".PNG", ".jpeg", ".png"]
    for seed, label in enumerate(("cat", "dog", "Übel")):
        for number, kind in enumerate(kinds):
            save(tmp_path / "pictures" / label / ("deep" if number > 5 else "") / f"{number}{kind}", 10 * seed + number)
    return tmp_path / "pictures"


def folder(path, tmp_path, prepare=True, **settings):
    settings = {"image_size": 8, "cache_dir": str(tmp_path / "cache"), **settings}
    data = ImageFolder(tokenizer=None, path=str(path), **settings)
    if prepare:
        data.prepare()
    return data


def test_the_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    data = digits(mean=0.0, std=1.0)
    entries = data.entries()
    assert [int(entry.label) for entry in entries] == theirs.target.tolist()
    ours = np.stack([np.asarray(data.image(entry)) for entry in entries])
    assert np.array_equal(ours, (theirs.images * 255 // 16).astype(np.uint8))
    assert data.labels == [str(digit) for digit in range(10)]


def test_each_digit_is_in_one_of_five_folds_that_are_alike():
    folds = [digits(fold=fold) for fold in range(5)]
    held_out = [{entry.place for entry in data._splits["validation"]} for data in folds]
    assert sorted(len(fold) for fold in held_out) == [355, 357, 359, 362, 364]
    assert len(set.union(*held_out)) == 1797
    for data in folds:
        assert all(34 <= count <= 37 for count in data.counts("validation"))
        assert not {entry.place for entry in data._splits["train"]} & {
            entry.place for entry in data._splits["validation"]
        }
    assert "10: " in folds[0].details()["labels"]


def test_a_sample_follows_from_seed_epoch_and_index_alone():
    samples = digits(**CHANGES).samples("train")
    whole = samples.batch(np.array([5, 900, 17, PADDING]), 3)
    again = digits(**CHANGES).samples("train").batch(np.array([17, 5]), 3)
    for key in ("images", "targets", "others", "shares"):
        assert torch.equal(again[key], whole[key][[2, 0]]), key
    assert whole["targets"][3] == whole["others"][3] == -100
    assert not whole["images"][3].any()
    for other in (samples.batch(np.array([5]), 4), digits(**CHANGES, seed=1).samples("train").batch(np.array([5]), 3)):
        assert not torch.equal(other["images"][0], whole["images"][0])


def test_every_image_is_the_partner_of_one():
    samples = digits(**CHANGES).samples("train")
    partners = samples._partners(np.arange(len(samples)), 2)
    assert sorted(partners.tolist()) == list(range(len(samples)))
    assert not np.array_equal(partners, samples._partners(np.arange(len(samples)), 3))


def test_validation_sees_images_as_they_are():
    data = digits(**CHANGES)
    samples = data.samples("validation")
    batch = samples.batch(np.array([0, 1]))
    assert set(batch) == {"images", "targets", "index"}
    assert torch.equal(batch["images"][0], data.pixels(data.image(samples.entries[0])))


def test_a_folder_of_each_class(pictures, tmp_path):
    data = folder(pictures, tmp_path, validation_fraction=0.2)
    assert data.labels == ["cat", "dog", "Übel"]
    assert (data.counts("train"), data.counts("validation")) == ([8, 8, 8], [2, 2, 2])
    assert data.sizes() == {"num_labels": 3}
    assert data.samples("train").batch(np.arange(24))["images"].shape == (24, 3, 8, 8)
    assert data.details()["labels"] == "3: cat 8 (33%), dog 8 (33%), Übel 8 (33%)"
    assert data.origin(0).text == "cat"
    # The split goes with the names, not with where they lie.
    pictures.rename(tmp_path / "moved")
    moved = folder(tmp_path / "moved", tmp_path, validation_fraction=0.2)
    assert [entry.group for entry in moved._splits["validation"]] == [
        entry.group for entry in data._splits["validation"]
    ]


def test_what_cannot_be_read_is_left_out_and_counted_or_stopped_at(pictures, tmp_path, monkeypatch):
    (pictures / "cat" / "broken.png").write_bytes(b"no image")
    whole = (pictures / "dog" / "1.jpg").read_bytes()
    (pictures / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "dog" / "readme.txt").write_text("no image, and none by its name")
    (pictures / "dog" / "link.png").symlink_to("nowhere.png")
    (pictures / "dog" / "folder.png").mkdir()
    data = folder(pictures, tmp_path)
    assert sum(data.counts("train") + data.counts("validation")) == 30
    assert data.details()["unreadable"].startswith("3 files are left out: ")
    assert "link.png (No such file or directory)" in data.details()["unreadable"]
    assert "cut.jpg (" in data.details()["unreadable"]
    with pytest.raises(UserError, match=r"broken.png cannot be read .* or set data.on_bad=skip"):
        folder(pictures, tmp_path, on_bad="stop")
    # It is known from the first time.
    monkeypatch.setattr("txtrain.data.image_folder.why_unreadable", lambda path, _: pytest.fail(path))
    assert len(folder(pictures, tmp_path).bad) == 3


def test_images_turn_as_their_camera_says(tmp_path):
    save(tmp_path / "p" / "a" / "1.jpg", size=(16, 8))
    save(tmp_path / "p" / "b" / "1.png")
    turned = Image.open(tmp_path / "p" / "a" / "1.jpg")
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path / "p" / "a" / "2.jpg", exif=exif)
    data = folder(tmp_path / "p", tmp_path, prepare=False)
    sizes = {Path(entry.place).name: data.image(entry).size for entry in data.entries() if entry.label == "a"}
    assert sizes == {"1.jpg": (16, 8), "2.jpg": (8, 16)}


def wrong(make, tmp_path):
    path = tmp_path / "p"
    make(path)
    with pytest.raises(UserError) as error:
        folder(path, tmp_path)
    assert "\n" not in str(error.value)
    return str(error.value)


def one_class(path):
    save(path / "a" / "1.png")


def empty_class(path):
    one_class(path)
    (path / "b").mkdir()


def loose(path):
    one_class(path)
    save(path / "1.png")


def no_folders(path):
    path.mkdir()


def all_bad(path):
    one_class(path)
    (path / "b").mkdir()
    (path / "b" / "1.png").write_bytes(b"")


def one_of_each(path):
    one_class(path)
    save(path / "b" / "1.png")


@pytest.mark.parametrize(
    "make, message",
    [
        (one_class, "has only the label a: give examples of two labels or more"),
        (empty_class, "b is empty: put images into it, or remove it"),
        (loose, "1.png has no label: put it into a folder of"),
        (no_folders, "has no folders: make one for each class"),
        (all_bad, "no image of the class b can be read: "),
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text(""), "is a file"),
        (one_of_each, "leaves nothing to validate on"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(make, message, tmp_path):
    assert message in wrong(make, tmp_path)


def test_images_to_validate_on_may_be_apart(pictures, tmp_path):
    save(tmp_path / "apart" / "dog" / "1.png")
    data = folder(pictures, tmp_path, validation_path=str(tmp_path / "apart"))
    assert (data.counts("train"), data.counts("validation")) == ([10, 10, 10], [0, 1, 0])
    save(tmp_path / "apart" / "fox" / "1.png")
    with pytest.raises(UserError, match="fox"):
        folder(pictures, tmp_path, validation_path=str(tmp_path / "apart"))


def test_a_trained_models_labels_rule_when_others_images_are_evaluated(pictures, tmp_path):
    data = folder(pictures, tmp_path, prepare=False)
    data.adopt(["Übel", "dog", "cat", "eel"])
    data.hold_out_all()
    data.prepare_evaluation()
    assert data.counts("validation") == [10, 10, 10, 0]
    assert data.samples("validation").targets[0] == 2
    data = folder(pictures, tmp_path, prepare=False)
    data.adopt(["dog", "cat"])
    with pytest.raises(UserError, match=r"has the label Übel, which is none of dog, cat"):
        data.prepare_evaluation()


def test_the_hub(pictures, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=["low", "high"])})
    rows = {"img": [Image.fromarray(np.full((5, 6, 3), 25 * i, dtype=np.uint8)) for i in range(10)], "fine": [0, 1] * 5}
    (tmp_path / "set" / "data").mkdir(parents=True)
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(tmp_path / "set" / "data" / "train-0.parquet")
    table.select(range(4)).to_parquet(tmp_path / "set" / "data" / "test-0.parquet")
    fields = {"name": str(tmp_path / "set"), "image_field": "img", "label_field": "fine", "image_size": 4}
    data = HubImages(tokenizer=None, validation_split="test", mean=0.0, std=1.0, **fields)
    data.prepare()
    assert data.labels == ["high", "low"]
    assert (data.counts("train"), data.counts("validation")) == ([5, 5], [2, 2])
    batch = data.samples("train").batch(np.array([3]))
    assert batch["targets"].tolist() == [0]
    torch.testing.assert_close(batch["images"], torch.full((1, 3, 4, 4), 75 / 255))
    with pytest.raises(UserError, match=r"data\.label_field=label is no column"):
        HubImages(tokenizer=None, name=str(tmp_path / "set"), image_field="img", image_size=4).prepare()


def test_what_a_run_keeps_is_what_makes_its_input(tmp_path):
    data = digits(mean=0.3, std=0.4)
    data.save(tmp_path)
    assert Digits.reader(tmp_path, None) == data.pixels
    assert json.loads((tmp_path / "labels.json").read_text()) == data.labels
    data.check_saved(tmp_path)
    (tmp_path / "labels.json").write_text('["0", "1"]')
    with pytest.raises(UserError, match="have other labels: put them back"):
        data.check_saved(tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"image_size": 0}, "data.image_size is 0"),
        ({"image_size": [8, 8, 8]}, "data.image_size is"),
        ({"fold": 5}, "data.fold is 5"),
        ({"channels": 4, "augment": Augment(operations=1)}, "for images of 1 or 3 channels, got data.channels=4"),
        ({"validation_fraction": 0.0}, "data.validation_fraction=0.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_what_cannot_be_is_told(settings, message):
    with pytest.raises(UserError, match=message):
        digits(**settings)


def test_pipes_foreign_kinds_and_images_of_transparency_alone_are_counted(pictures, tmp_path):
    """And at once: whoever opens a pipe waits. What is hidden is no image, at any depth."""
    os.mkfifo(pictures / "cat" / "pipe.png")
    (pictures / "cat" / "phone.heic").write_bytes(b"ftypheic")
    drawn = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    drawn.putpixel((3, 3), (0, 0, 0, 0))
    drawn.save(pictures / "dog" / "alpha.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 255)).save(pictures / "dog" / "black.png")
    (pictures / "dog" / ".thumbs").mkdir()
    for name in ("._1.png", ".thumbs/2.png"):
        (pictures / "dog" / name).write_bytes(b"no image")
    data = folder(pictures, tmp_path, prepare=False)
    assert {Path(place).name: reason for place, reason in data.bad.items()} == {
        "pipe.png": "it is no regular file",
        "phone.heic": "Pillow reads no .heic: convert it to .jpg or .png",
        "alpha.png": "it is only an alpha channel, and data.channels=3 has none",
    }
    assert data.left_out()["unreadable"].startswith("3 files are left out")
    seen = folder(pictures, tmp_path, prepare=False, channels=4, mean=0.5, std=0.5)
    assert {Path(place).name for place in seen.bad} == {"pipe.png", "phone.heic"}
