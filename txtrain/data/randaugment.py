"""RandAugment (https://arxiv.org/abs/1909.13719): a few random operations on an image, all of one strength."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

STRONGEST = 30


def random_operations(image: "Image", draws: np.random.Generator, *, number: int, magnitude: int) -> "Image":
    """The image after `number` operations of a strength from 0 to 30; their direction is drawn too."""
    names = list(OPERATIONS)
    for _ in range(number):
        name, sign = names[int(draws.integers(len(names)))], 1 if draws.random() < 0.5 else -1
        image = OPERATIONS[name](image, magnitude / STRONGEST, sign)
    return image


def _affine(image: "Image", *matrix: float) -> "Image":
    """Each place (x, y) of the result comes from (a x + b y + c, d x + e y + f), about the middle."""
    from PIL.Image import Resampling, Transform

    a, b, c, d, e, f = matrix
    x, y = image.width / 2, image.height / 2
    about = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
    return image.transform(image.size, Transform.AFFINE, about, resample=Resampling.NEAREST)


def _rotated(image: "Image", strength: float, sign: int) -> "Image":
    return image.rotate(sign * 30 * strength)


def _sheared(image: "Image", strength: float, sign: int, *, down: bool) -> "Image":
    shear = sign * 0.3 * strength
    return _affine(image, 1, 0, 0, shear, 1, 0) if down else _affine(image, 1, shear, 0, 0, 1, 0)


def _moved(image: "Image", strength: float, sign: int, *, down: bool) -> "Image":
    part = sign * 150 / 331 * strength
    by = part * (image.height if down else image.width)
    return _affine(image, 1, 0, 0, 0, 1, by) if down else _affine(image, 1, 0, by, 0, 1, 0)


def _enhanced(image: "Image", strength: float, sign: int, *, what: str) -> "Image":
    from PIL import ImageEnhance

    return getattr(ImageEnhance, what)(image).enhance(1 + sign * 0.9 * strength)


def _posterized(image: "Image", strength: float, sign: int) -> "Image":
    from PIL import ImageOps

    return ImageOps.posterize(image, 8 - round(4 * strength))


def _solarized(image: "Image", strength: float, sign: int) -> "Image":
    from PIL import ImageOps

    return ImageOps.solarize(image, round(255 * (1 - strength)))


def _stretched(image: "Image", strength: float, sign: int) -> "Image":
    from PIL import ImageOps

    return ImageOps.autocontrast(image)


def _equalized(image: "Image", strength: float, sign: int) -> "Image":
    from PIL import ImageOps

    return ImageOps.equalize(image)


OPERATIONS: dict[str, Callable[["Image", float, int], "Image"]] = {
    "identity": lambda image, strength, sign: image,
    "shear x": partial(_sheared, down=False),
    "shear y": partial(_sheared, down=True),
    "translate x": partial(_moved, down=False),
    "translate y": partial(_moved, down=True),
    "rotate": _rotated,
    "brightness": partial(_enhanced, what="Brightness"),
    "color": partial(_enhanced, what="Color"),
    "contrast": partial(_enhanced, what="Contrast"),
    "sharpness": partial(_enhanced, what="Sharpness"),
    "posterize": _posterized,
    "solarize": _solarized,
    "autocontrast": _stretched,
    "equalize": _equalized,
}
