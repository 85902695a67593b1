"""How an image becomes what a model reads: size, scale, mean and deviation, as `preprocessor_config.json` says them."""

import json
import logging
import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from txtrain.errors import UserError
from txtrain.records import read_object

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "preprocessor_config.json"
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's names of formats with so many channels
RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # Pillow's numbers
BILINEAR = RESAMPLING["bilinear"]

FOREIGN = frozenset({".heic", ".heif", ".jxl", ".svg", ".cr2", ".nef", ".arw", ".dng"})  # images, but not Pillow's
TRANSPARENT = (2, 4)  # channels with transparency

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images of any size and kind as tensors (C, height, width) of one size, with values about zero.

    Args:
        size: height and width.
        channels: C; 1 is grey, 3 red, green and blue.
        mean, std: of each channel, subtracted and divided by after values were scaled.
        scale: factor on values, which are 0 to 255 in files.
        resize: height and width, or the shorter side, to which an image is resized before its middle of `size` is cut
            out. Default: `size`, so that nothing is cut off.
        resample: how it is resized, by Pillow's number.
    """

    size: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    scale: float = 1 / 255
    resize: tuple[int, int] | int | None = None
    resample: int = BILINEAR

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise UserError(f"images have 1 to 4 channels, got {self.channels}: set data.channels=3")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, self.channels):
                raise UserError(
                    f"{name} has {len(values)} numbers for {self.channels} channels: set data.{name} to one number, or "
                    "to one for each channel"
                )
        if min(self.std) <= 0:
            raise UserError(f"std is {list(self.std)}: give positive numbers")

    @classmethod
    def of_folder(cls, folder: Path, *, size: tuple[int, int], channels: int) -> "Pixels":
        """What a Hugging Face folder says; without its file, values from -1 to 1, as the first ViTs have them.

        Args:
            folder: it may have a `preprocessor_config.json`.
            size, channels: of the model's images.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            log.warning("%s has no %s: pixels are scaled to -1 to 1.", folder, FILE)
            return cls(size=size, channels=channels)
        try:
            said = read_object(path, do="restore it")
            return cls(size=size, channels=channels, **_read(said))
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            raise UserError(f"{path} cannot be read ({error!r}): restore it") from error

    @classmethod
    def read(cls, folder: Path) -> "Pixels":
        """What `save` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = folder / FILE
        try:
            said = read_object(path)
            size = said["crop_size"] if said.get("do_center_crop") else said["size"]
            found = _read(said)
            return cls(size=(size["height"], size["width"]), channels=len(found["mean"]), **found)
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
            raise UserError(f"{path} cannot be read ({error!r}): restore it or name another run") from error

    def save(self, folder: Path) -> None:
        """Writes a `preprocessor_config.json` that `transformers` reads as we do."""
        height, width = self.size
        said: dict[str, Any] = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": _named(self.size if self.resize is None else self.resize),
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean) * (self.channels // len(self.mean)),
            "image_std": list(self.std) * (self.channels // len(self.std)),
        }
        if self.resize is not None:
            said |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
        (folder / FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")

    def settings(self) -> dict[str, Any]:
        """The same as values of the `data` group."""
        unit = 255 * self.scale
        return {
            "image_size": list(self.size),
            "channels": self.channels,
            "mean": [mean / unit for mean in self.mean],
            "std": [std / unit for std in self.std],
            "resize": list(self.resize) if isinstance(self.resize, tuple) else self.resize,
            "resample": next(name for name, number in RESAMPLING.items() if number == self.resample),
        }

    def __call__(self, image: "Image") -> Tensor:
        """An image of Pillow's → (C, height, width), float32."""
        return self.values(self.fit(self.convert(image)))

    def convert(self, image: "Image") -> "Image":
        """An image of any kind as one of so many channels, with 8 bits for each."""
        return to_8_bits(image).convert(MODES[self.channels])

    def fit(self, image: "Image") -> "Image":
        """An image of any size as one of `size`."""
        height, width = _target(self.size if self.resize is None else self.resize, image.height, image.width)
        if (image.height, image.width) != (height, width):
            image = image.resize((width, height), resample=self.resample)
        left, top = (width - self.size[1]) // 2, (height - self.size[0]) // 2
        if self.resize is not None:
            image = image.crop((left, top, left + self.size[1], top + self.size[0]))
        return image

    def values(self, image: "Image") -> Tensor:
        """An image of the right size and kind → (C, height, width), float32."""
        values = np.asarray(image, dtype=np.float32).reshape(*self.size, self.channels)
        mean, std = (np.asarray(numbers, dtype=np.float32) for numbers in (self.mean, self.std))
        values = (values * np.float32(self.scale) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def to_8_bits(image: "Image") -> "Image":
    """Greys of more than 8 bits as greys of 8: whole numbers are of 16 bits, and fractions are from 0 to 1.

    Raises:
        ValueError: they are not, so that nobody knows what is white.
    """
    from PIL import Image

    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        return image.convert("RGBA")  # as Pillow asks for
    most = {"I": 2**16 - 1, "F": 1}.get(image.mode[:1])  # I, I;16, I;16B, ...
    if most is None:
        return image
    values = np.asarray(image, dtype=np.float64)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= most:
        raise ValueError(f"its greys are from {low:g} to {high:g}, and from 0 to {most} is known")
    return Image.fromarray((values * (255 if image.mode == "F" else 1 / 256)).astype(np.uint8))


def read_image(path: str | Path) -> "Image":
    """An image, whole, turned as its camera says, with 8 bits for each channel.

    Raises:
        OSError, SyntaxError, ValueError: it cannot be read.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image.load()
        return to_8_bits(ImageOps.exif_transpose(image))


def why_unreadable(path: str, channels: int | None = None) -> str | None:
    """Why an image cannot be read, or has nothing in so many channels, in a few words; None if it can."""
    from PIL import UnidentifiedImageError
    from PIL.Image import DecompressionBombError, DecompressionBombWarning

    if reason := _no_file(path):
        return reason
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DecompressionBombWarning)  # large is not bad
            image = read_image(path)
            if channels is not None and channels not in TRANSPARENT and only_alpha(image):
                return f"it is only an alpha channel, and data.channels={channels} has none"
    except UnidentifiedImageError:
        suffix = Path(path).suffix.lower()
        foreign = f"Pillow reads no {suffix}: convert it to .jpg or .png"
        return foreign if suffix in FOREIGN else "it is no image that Pillow knows"
    except (OSError, SyntaxError, ValueError, EOFError, DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)  # Pillow's own have no number, and say it in words
        return " ".join(reason.replace(path, "it").split()) or type(error).__name__
    return None


def only_alpha(image: "Image") -> bool:
    """Whether an image has one colour, so that only its transparency says what is on it."""
    if not ("A" in image.getbands() or "transparency" in image.info):
        return False
    values = np.asarray(image.convert("RGBA")).reshape(-1, 4)
    alike = values.min(0) == values.max(0)
    return bool(alike[:3].all() and not alike[3])


def _no_file(path: str) -> str | None:
    """Why nothing is to be read: whoever opens a pipe waits for somebody to write into it."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return error.strerror
    return None if stat.S_ISREG(mode) else "it is no regular file"


def _read(said: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `Pixels` but size and channels, which the model knows."""
    found: dict[str, Any] = {"resample": int(said.get("resample", BILINEAR))}
    if not said.get("do_rescale", True):
        found["scale"] = 1.0
    elif "rescale_factor" in said:
        found["scale"] = float(said["rescale_factor"])
    normal = said.get("do_normalize", True)
    found["mean"] = tuple(map(float, said["image_mean"])) if normal else (0.0,)
    found["std"] = tuple(map(float, said["image_std"])) if normal else (1.0,)
    if said.get("do_center_crop") and said.get("do_resize", True):
        size = said["size"]
        size = {"height": size, "width": size} if isinstance(size, int) else size
        found["resize"] = size.get("shortest_edge") or (size["height"], size["width"])
    return found


def _named(size: tuple[int, int] | int) -> dict[str, int]:
    return {"shortest_edge": size} if isinstance(size, int) else {"height": size[0], "width": size[1]}


def _target(size: tuple[int, int] | int, height: int, width: int) -> tuple[int, int]:
    """Height and width to resize to."""
    if not isinstance(size, int):
        return size
    short, long = min(height, width), max(height, width)
    longer = int(size * long / short)
    return (size, longer) if height <= width else (longer, size)
