"""Mixtures of two training images and their labels."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from txtrain.data.augment import Draws
from txtrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How an image is mixed with another.

    Args:
        share: of the first image, and of its label in the loss.
        box: where the second one lies: top, left, bottom and right; None where both are blended everywhere.
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Two images (C, height, width) → one."""
        if self.box is None:
            return self.share * first + (1 - self.share) * second
        top, left, bottom, right = self.box
        mixed = first.clone()
        mixed[:, top:bottom, left:right] = second[:, top:bottom, left:right]
        return mixed


class Mixing:
    """Mixup (https://arxiv.org/abs/1710.09412) and CutMix (https://arxiv.org/abs/1905.04899); with both, one is drawn.

    Args:
        mixup: α of the share's Beta(α, α) in a blend of two images; 0 is none.
        cutmix: α of the share that is left of an image into which a part of another is pasted; 0 is none.
    """

    def __init__(self, *, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        for name, value in {"mixup": mixup, "cutmix": cutmix}.items():
            if value < 0:
                raise UserError(
                    f"data.mixing.{name} is {value}: give 0 for none, or more, such as data.mixing.{name}=0.2"
                )
        self.mixup, self.cutmix = mixup, cutmix

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def draw(self, size: tuple[int, int], draws: Draws) -> Mixture:
        """For images of a height and width."""
        cut = self.cutmix > 0 and (not self.mixup or draws.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = float(draws.beta(alpha, alpha))
        if not cut:
            return Mixture(share=share)
        # A box of the other's share of the area about a random place; what lies outside the image is lost.
        height, width = size
        half = np.sqrt(1 - share) / 2
        y, x = draws.integers(height), draws.integers(width)
        top, bottom = (int(np.clip(round(y + side * half * height), 0, height)) for side in (-1, 1))
        left, right = (int(np.clip(round(x + side * half * width), 0, width)) for side in (-1, 1))
        area = (bottom - top) * (right - left) / (height * width)
        return Mixture(share=1 - area, box=(top, left, bottom, right))
