"""Random changes and mixtures of images: what each does, and that nothing but seed, epoch and sample decides it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from txtrain.data.augment import Augment
from txtrain.data.mixing import Mixing, Mixture
from txtrain.data.order import sample_generator
from txtrain.data.pixels import Pixels
from txtrain.data.randaugment import OPERATIONS, random_operations
from txtrain.errors import UserError

PIXELS = Pixels(size=(8, 8), channels=3, mean=(0.0,), std=(1.0,))
PLAIN = {"identity", "shear x", "shear y", "translate x", "translate y", "rotate", "brightness", "color", "contrast"}


def picture(height=8, width=8, channels=3):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(noise.squeeze())


def array(image):
    return np.asarray(image).astype(np.int64)


def most(first=0.0):
    """Draws that are always the largest that can be, or `first` of those between 0 and 1."""
    return SimpleNamespace(
        uniform=lambda low, high, size=None: high if size is None else np.full(size, high),
        random=lambda: first,
        integers=lambda end: end - 1,
    )


def changed(augment, image, draws=None):
    """Values from 0 to 255."""
    x = augment(image, PIXELS, draws or most())
    return (x * 255).round().long().permute(1, 2, 0).numpy()


def test_without_changes_an_image_is_what_validation_sees():
    image = picture(20, 31)
    assert torch.equal(Augment()(image, PIXELS, sample_generator(0, 0, 0)), PIXELS(image))


def test_a_quarter_turn():
    assert np.abs(changed(Augment(rotate=90.0), picture()) - np.rot90(array(picture()), -1)).max() <= 1


def test_a_move_by_whole_pixels():
    expected = np.zeros((8, 8, 3), dtype=np.int64)
    expected[2:, 2:] = array(picture())[:-2, :-2]
    assert np.array_equal(changed(Augment(shift=0.25), picture()), expected)


def test_twice_as_large_shows_the_middle():
    x = np.zeros((8, 8, 3), dtype=np.uint8)
    x[3:5, 3:5] = 200  # each pixel of these becomes 2 × 2
    grown = changed(Augment(zoom=0.999), Image.fromarray(x))
    assert grown[3:5, 3:5].min() > 190
    assert (grown[2:6, 2:6] > 100).all()
    assert grown[[0, -1]].max() == 0


def test_left_and_right_change_places():
    assert np.array_equal(changed(Augment(flip=0.5), picture(), most(0.4)), array(picture())[:, ::-1])
    assert np.array_equal(changed(Augment(flip=0.5), picture(), most(0.6)), array(picture()))


def test_a_crop_is_a_part_resized():
    image = picture(30, 40)
    draws = sample_generator(0, 0, 3)
    x = Augment(crop=[0.3, 0.6])(image, PIXELS, sample_generator(0, 0, 3))
    part, ratio = 1200 * draws.uniform(0.3, 0.6), np.exp(draws.uniform(np.log(3 / 4), np.log(4 / 3)))
    across, down = round(np.sqrt(part * ratio)), round(np.sqrt(part / ratio))
    left, top = draws.integers(40 - across + 1), draws.integers(30 - down + 1)
    box = tuple(map(int, (left, top, left + across, top + down)))
    expected = PIXELS.values(image.resize((8, 8), resample=2, box=box))
    assert torch.equal(x, expected)
    # One that fits nowhere is the largest square in the middle.
    tall = picture(80, 4)
    middle = tall.resize((8, 8), resample=2, box=(0, 38, 4, 42))
    assert torch.equal(Augment(crop=[1.0, 1.0])(tall, PIXELS, draws), PIXELS.values(middle))


def test_a_hole_is_noise_and_the_rest_stays():
    x = Augment(erase=1.0)(picture(), PIXELS, sample_generator(0, 0, 1))
    other = (x != PIXELS(picture())).all(0)
    rows, columns = other.any(1), other.any(0)
    assert torch.equal(other, rows[:, None] & columns)
    assert 0 < other.float().mean() < 0.5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_keeps_the_kind_of_image_and_at_no_strength_most_do_nothing(name, channels):
    image = picture(channels=channels)
    for sign in (-1, 1):
        strong = OPERATIONS[name](image, 1.0, sign)
        assert (strong.size, strong.mode) == (image.size, image.mode)
        if name in PLAIN or name == "posterize":
            assert np.array_equal(OPERATIONS[name](image, 0.0, sign), image)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("brightness", lambda x: np.clip(1.9 * x, 0, 255).astype(int)),
        ("posterize", lambda x: x & 0b11110000),
        ("solarize", lambda x: 255 - x),
        ("translate y", lambda x: np.concatenate([x[4:], np.zeros((4, 8, 3), dtype=int)])),
        ("contrast", lambda x: np.clip(1.9 * x - 0.9 * int(grey(x).mean() + 0.5), 0, 255).astype(int)),
        ("autocontrast", lambda x: ((x - x.min((0, 1))) * 255 / np.ptp(x, (0, 1))).astype(int)),
        ("color", lambda x: np.clip(1.9 * x - 0.9 * grey(x)[..., None], 0, 255).astype(int)),
    ],
)
def test_operations_are_their_formulas(name, expected):
    done = array(OPERATIONS[name](picture(), 1.0, 1))
    assert np.abs(done - expected(array(picture()))).max() <= 1


def grey(x):
    return (x * [19595, 38470, 7471]).sum(-1) + 0x8000 >> 16


def test_translations_and_shears_go_both_ways():
    image = picture(16, 16)
    assert np.array_equal(
        OPERATIONS["translate x"](image, 0.5, -1), OPERATIONS["translate x"](image.transpose(0), 0.5, 1).transpose(0)
    )
    for name in ("shear x", "shear y", "rotate"):
        assert not np.array_equal(OPERATIONS[name](image, 1.0, 1), OPERATIONS[name](image, 1.0, -1))


def test_all_operations_are_drawn():
    seen = set()
    original = dict(OPERATIONS)
    try:
        for name in OPERATIONS:
            OPERATIONS[name] = lambda image, strength, sign, name=name: seen.add((name, sign)) or image
        random_operations(picture(), sample_generator(0, 0, 0), number=500, magnitude=9)
    finally:
        OPERATIONS.update(original)
    assert len(seen) == 2 * len(OPERATIONS)


def test_mixup_blends_by_its_share():
    first, second = torch.randn(2, 3, 8, 8)
    mixture = Mixing(mixup=0.4).draw((8, 8), sample_generator(0, 0, 0))
    torch.testing.assert_close(mixture(first, second), mixture.share * first + (1 - mixture.share) * second)
    shares = np.array([Mixing(mixup=0.4).draw((8, 8), sample_generator(0, 0, i)).share for i in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * 1.8), abs=0.01)  # of Beta(0.4, 0.4)


def test_cutmix_pastes_what_its_share_leaves():
    first, second = torch.zeros(1, 24, 16), torch.ones(1, 24, 16)
    for i in range(200):
        mixture = Mixing(cutmix=1.0).draw((24, 16), sample_generator(0, 0, i))
        assert mixture(first, second).mean().item() == pytest.approx(1 - mixture.share, abs=1e-6)
    assert torch.equal(Mixture(share=0.5, box=(0, 0, 0, 0))(first, second), first)


def test_of_both_each_is_drawn_half_of_the_time():
    drawn = [Mixing(mixup=1.0, cutmix=1.0).draw((8, 8), sample_generator(0, 0, i)).box is None for i in range(400)]
    assert 150 < sum(drawn) < 250
    assert not Mixing()


@pytest.mark.parametrize(
    "kind, settings, message",
    [
        (Augment, {"flip": 2.0}, "data.augment.flip is 2.0"),
        (Augment, {"shift": 1.0}, "data.augment.shift is 1.0"),
        (Augment, {"rotate": -1.0}, "data.augment.rotate is -1.0"),
        (Augment, {"crop": [0.5]}, r"data.augment.crop is \[0.5\]"),
        (Augment, {"operations": 1, "magnitude": 31}, "data.augment.magnitude=31"),
        (Mixing, {"mixup": -1.0}, "data.mixing.mixup is -1.0"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told(kind, settings, message):
    with pytest.raises(UserError, match=message):
        kind(**settings)
