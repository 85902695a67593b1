"""Images to tensors, against the image processors of transformers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from txtrain.data.pixels import FILE, Pixels, read_image, why_unreadable
from txtrain.errors import UserError

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def picture(height=37, width=53, channels=3):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(noise.squeeze())


@pytest.mark.parametrize(
    "kind, settings",
    [
        (ViTImageProcessorPil, {"size": {"height": 16, "width": 16}}),
        (ViTImageProcessorPil, {"size": {"height": 16, "width": 16}, "resample": 3, **IMAGENET}),
        (ViTImageProcessorPil, {"size": {"height": 16, "width": 16}, "do_normalize": False}),
        (ViTImageProcessorPil, {"size": {"height": 16, "width": 16}, "do_rescale": False}),
        (DeiTImageProcessorPil, {"size": {"height": 20, "width": 24}, "crop_size": {"height": 16, "width": 16}}),
        (DeiTImageProcessorPil, {"size": {"shortest_edge": 19}, "crop_size": {"height": 16, "width": 16}}),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(37, 53), (61, 40), (16, 16)], ids=str)
def test_pixels_are_those_of_transformers(kind, settings, size, tmp_path):
    theirs = kind(**settings)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Pixels.of_folder(tmp_path / "theirs", size=(16, 16), channels=3)
    image = picture(*size)
    expected = theirs(image, return_tensors="pt").pixel_values[0].float()
    torch.testing.assert_close(ours(image), expected, rtol=1e-5, atol=1e-5)
    # And what we write, transformers reads so.
    (tmp_path / "ours").mkdir()
    ours.save(tmp_path / "ours")
    written = kind.from_pretrained(tmp_path / "ours")(image, return_tensors="pt").pixel_values[0].float()
    torch.testing.assert_close(written, expected, rtol=1e-5, atol=1e-5)
    assert Pixels.of_folder(tmp_path / "ours", size=(16, 16), channels=3)(image).equal(ours(image))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_kind_become_so_many_channels(channels):
    pixels = Pixels(size=(5, 7), channels=channels)
    for mode in ("L", "RGB", "RGBA", "P", "1", "CMYK"):
        assert pixels(picture().convert(mode)).shape == (channels, 5, 7)


def test_older_files_say_a_square_as_one_number(tmp_path):
    said = {"size": 20, "do_center_crop": True, "crop_size": 16, **IMAGENET}
    (tmp_path / FILE).write_text(json.dumps(said))
    assert Pixels.of_folder(tmp_path, size=(16, 16), channels=3).resize == (20, 20)


def test_a_folder_without_the_file_means_minus_one_to_one(tmp_path, caplog):
    pixels = Pixels.of_folder(tmp_path, size=(8, 8), channels=1)
    assert "pixels are scaled to -1 to 1" in caplog.text
    values = pixels(Image.fromarray(np.array([[0, 255] * 4] * 8, dtype=np.uint8)))
    assert (values.min(), values.max()) == (-1, 1)


@pytest.mark.parametrize("text", ["{", '{"image_mean": 3}', '{"do_normalize": true}', "[]"])
def test_a_damaged_file_is_told(text, tmp_path):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match=f"{FILE} cannot be read"):
        Pixels.of_folder(tmp_path, size=(8, 8), channels=3)


@pytest.mark.parametrize(
    "settings, message",
    [({"channels": 5}, "1 to 4 channels"), ({"mean": (0.1, 0.2)}, "2 numbers for 3"), ({"std": (0.0,)}, "positive")],
)
def test_what_cannot_be_is_told(settings, message):
    with pytest.raises(UserError, match=message):
        Pixels(size=(8, 8), **settings)


GREYS = np.linspace(0, 65535, 64).round().reshape(8, 8)


@pytest.mark.parametrize(
    "name, image",
    {
        "16.png": Image.fromarray(GREYS.astype(np.uint16)),
        "big_endian.tiff": Image.frombytes("I;16B", (8, 8), GREYS.astype(">u2").tobytes()),
        "32.tiff": Image.fromarray(GREYS.astype(np.int32)),
        "fractions.tiff": Image.fromarray((GREYS / 65535).astype(np.float32)),
    }.items(),
)
def test_greys_of_more_than_8_bits_are_not_cut_off(name, image, tmp_path):
    image.save(tmp_path / name)
    read = read_image(tmp_path / name)
    assert read.mode == "L"
    assert np.abs(np.asarray(read) - GREYS / 257).max() <= 1
    values = Pixels(size=(8, 8), channels=3, mean=(0.0,), std=(1.0,))(read)
    torch.testing.assert_close(values, torch.from_numpy(GREYS / 65535).float().expand(3, 8, 8), atol=1 / 255, rtol=0)


@pytest.mark.parametrize("greys", [np.full((4, 4), 70000, np.int32), np.full((4, 4), 255.0, np.float32)])
def test_greys_of_no_known_scale_are_not_guessed(greys, tmp_path):
    path = str(tmp_path / "greys.tiff")
    Image.fromarray(greys).save(path)
    assert "its greys are from" in why_unreadable(path)


def test_images_of_any_kind_are_read_alike(tmp_path):
    """Of an animation the first one; one colour stays that colour in all of them."""
    colour = Image.new("RGB", (9, 7), (200, 30, 60))
    palette = Image.new("P", (9, 7), 1)
    palette.putpalette([0, 0, 0, 200, 30, 60])
    kinds = {"cmyk.tiff": colour.convert("CMYK"), "alpha.png": colour.convert("RGBA"), "palette.gif": palette}
    for name, image in kinds.items():
        image.save(tmp_path / name)
    palette.save(tmp_path / "alphas.png", transparency=b"\x80\xff")
    kinds["alphas.png"] = palette
    for kind in ("gif", "webp", "png"):
        kinds[f"moving.{kind}"] = colour
        options = {"lossless": True} if kind == "webp" else {}
        colour.save(tmp_path / f"moving.{kind}", save_all=True, append_images=[Image.new("RGB", (9, 7))], **options)
    Image.new("RGB", (1, 1), (200, 30, 60)).save(tmp_path / "one.png")
    pixels = Pixels(size=(4, 4), channels=3, mean=(0.0,), std=(1 / 255,))
    for name in [*kinds, "one.png"]:
        values = pixels(read_image(tmp_path / name))
        expected = torch.tensor([200.0, 30, 60])[:, None, None].expand(3, 4, 4)
        torch.testing.assert_close(values, expected, atol=3, rtol=0, msg=name)
