"""Random changes of images in training: of place and size, colours (RandAugment), and holes."""

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from txtrain.data.pixels import Pixels
from txtrain.data.randaugment import random_operations
from txtrain.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Draws = np.random.Generator
RATIOS = 3 / 4, 4 / 3  # width to height of a random crop
TRIES = 10  # to find a crop that fits into the image
HOLES = 0.02, 1 / 3  # share of the image that a hole takes


class Augment:
    """Changes of an image, drawn anew in each epoch.

    Args:
        rotate: most degrees that it turns to either side.
        shift: most of its width and height that it moves by, as a share.
        zoom: most that it grows or shrinks by, as a share.
        crop: least and most of its area that a random part has, which is then resized to the whole
            (https://arxiv.org/abs/1409.4842). Default: the whole.
        flip: probability that left and right change places.
        operations: of RandAugment (https://arxiv.org/abs/1909.13719), one after the other.
        magnitude: how strong they are, from 0 to 30.
        erase: probability of a hole, filled with noise (https://arxiv.org/abs/1708.04896).
    """

    def __init__(
        self,
        *,
        rotate: float = 0.0,
        shift: float = 0.0,
        zoom: float = 0.0,
        crop: list[float] | None = None,
        flip: float = 0.0,
        operations: int = 0,
        magnitude: int = 9,
        erase: float = 0.0,
    ) -> None:
        for name, value in {"flip": flip, "erase": erase}.items():
            if not 0 <= value <= 1:
                raise UserError(f"data.augment.{name} is {value}: give a probability, such as data.augment.{name}=0.5")
        for name, value in {"shift": shift, "zoom": zoom}.items():
            if not 0 <= value < 1:
                raise UserError(
                    f"data.augment.{name} is {value}: give a share below 1, such as data.augment.{name}=0.1"
                )
        if not 0 <= rotate <= 180:
            raise UserError(f"data.augment.rotate is {rotate}: give up to 180 degrees, such as data.augment.rotate=15")
        if crop is not None and not (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1):
            raise UserError(
                f"data.augment.crop is {crop}: give the least and the most of the area, such as "
                "data.augment.crop=[0.08,1.0], or null"
            )
        if operations < 0 or not 0 <= magnitude <= 30:
            raise UserError(
                f"data.augment.operations={operations} data.augment.magnitude={magnitude}: give 0 or more operations, "
                "and a magnitude from 0 to 30, such as data.augment.operations=2 data.augment.magnitude=9"
            )
        self.rotate, self.shift, self.zoom, self.crop, self.flip = rotate, shift, zoom, crop, flip
        self.operations, self.magnitude, self.erase = operations, magnitude, erase

    def __call__(self, image: "Image", pixels: Pixels, draws: Draws) -> Tensor:
        """An image as a tensor (C, height, width), changed."""
        from PIL.Image import Transpose

        image = pixels.convert(image)
        image = self._cropped(image, pixels, draws) if self.crop else pixels.fit(image)
        if self.rotate or self.shift or self.zoom:
            image = self._moved(image, draws)
        if draws.random() < self.flip:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        image = random_operations(image, draws, number=self.operations, magnitude=self.magnitude)
        x = pixels.values(image)
        if draws.random() < self.erase:
            self._erase(x, draws)
        return x

    def _moved(self, image: "Image", draws: Draws) -> "Image":
        """Turned, moved and zoomed about its middle, in one interpolation; black comes in at the edges."""
        from PIL.Image import Resampling, Transform

        angle = np.deg2rad(draws.uniform(-self.rotate, self.rotate))
        scale = 1 + draws.uniform(-self.zoom, self.zoom)
        across, down = draws.uniform(-self.shift, self.shift, size=2) * image.size
        # From where each place of the result comes.
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        x, y = image.width / 2, image.height / 2
        back = (
            cos,
            sin,
            x - cos * (x + across) - sin * (y + down),
            -sin,
            cos,
            y + sin * (x + across) - cos * (y + down),
        )
        return image.transform(image.size, Transform.AFFINE, tuple(map(float, back)), resample=Resampling.BILINEAR)

    def _cropped(self, image: "Image", pixels: Pixels, draws: Draws) -> "Image":
        """A random part, resized to the whole."""
        assert self.crop is not None
        (height, width), area = pixels.size, image.width * image.height
        for _ in range(TRIES):
            part, ratio = area * draws.uniform(self.crop[0], self.crop[1]), np.exp(draws.uniform(*np.log(RATIOS)))
            across, down = round(float(np.sqrt(part * ratio))), round(float(np.sqrt(part / ratio)))
            if 0 < across <= image.width and 0 < down <= image.height:
                left, top = int(draws.integers(image.width - across + 1)), int(draws.integers(image.height - down + 1))
                break
        else:
            across = down = min(image.width, image.height)
            left, top = (image.width - across) // 2, (image.height - down) // 2
        return image.resize((width, height), resample=pixels.resample, box=(left, top, left + across, top + down))

    @staticmethod
    def _erase(x: Tensor, draws: Draws) -> None:
        """Noise in a rectangle of x (C, height, width)."""
        _, height, width = x.shape
        part, ratio = height * width * draws.uniform(*HOLES), np.exp(draws.uniform(np.log(0.3), np.log(1 / 0.3)))
        down = min(height, max(1, round(float(np.sqrt(part * ratio)))))
        across = min(width, max(1, round(float(np.sqrt(part / ratio)))))
        top, left = draws.integers(height - down + 1), draws.integers(width - across + 1)
        noise = draws.standard_normal((len(x), down, across), dtype=np.float32)
        x[:, top : top + down, left : left + across] = x.new_tensor(noise)
