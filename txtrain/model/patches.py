"""From images to vectors of patches."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from txtrain.model.embed import Input
from txtrain.model.grid import Grid
from txtrain.model.norm.base import BASE_STD


class Pieces(Input):
    """Pieces of an input, each mapped to a vector by one linear layer, behind learned vectors that stand for it all."""

    kernel: tuple[int, int, int]  # channels, height and width of a piece

    def map_pieces(self, *, size: int, dim: int, dropout: float, class_token: bool, distillation_token: bool) -> None:
        """Makes the layers, for pieces of `size` numbers; the arguments are those of a constructor."""
        if distillation_token and not class_token:
            raise ValueError("embedding.distillation_token=true follows a class token: set embedding.class_token=true")
        self.projection = nn.Linear(size, dim)
        self.class_token = nn.Parameter(torch.empty(dim)) if class_token else None
        self.distillation_token = nn.Parameter(torch.empty(dim)) if distillation_token else None
        self.dropout = nn.Dropout(dropout)

    def initialise(self) -> None:
        nn.init.normal_(self.projection.weight, std=self.projection.in_features**-0.5)
        nn.init.zeros_(self.projection.bias)
        for token in self.prefix():
            nn.init.normal_(token, std=BASE_STD)

    def prefix(self) -> list[Tensor]:
        """The learned vectors (D,) that go before the pieces."""
        return [token for token in (self.class_token, self.distillation_token) if token is not None]

    def embed(self, pieces: Tensor, add_positions: Callable[[Tensor], Tensor]) -> Tensor:
        """pieces (B, pieces, size) → (B, T, D)."""
        x = self.projection(pieces)
        prefix = [token.to(x.dtype).expand(len(x), 1, -1) for token in self.prefix()]
        return self.dropout(add_positions(torch.cat((*prefix, x), dim=1)))


class Patches(Pieces):
    """Images cut into patches, each mapped to a vector by one linear layer (ViT, https://arxiv.org/abs/2010.11929).

    An image whose size is no multiple of the patch loses the rest at its right and bottom. Images of another size than
    `image_size` get positions between those of the grid that was trained (see `Grid.positions`).

    Args:
        dim: width D.
        vocab_size: must be None: a vocabulary is of tokens.
        dropout: probability of zeroing an element.
        image_size: height and width of an image in training, or one number for both.
        patch_size: height and width of a patch, or one number for both. Default: what divides the image into 14 × 14
            patches or fewer, as ViT's 16 does 224.
        channels: of an image, C.
        class_token: whether a learned vector goes before the patches, whose output stands for the image.
        distillation_token: whether a second one follows it (DeiT, https://arxiv.org/abs/2012.12877).
    """

    def __init__(
        self,
        *,
        dim: int,
        vocab_size: int | None = None,
        dropout: float = 0.0,
        image_size: int | list[int],
        patch_size: int | list[int] | None = None,
        channels: int = 3,
        class_token: bool = True,
        distillation_token: bool = False,
    ) -> None:
        super().__init__()
        if vocab_size is not None:
            raise ValueError("embedding=patches reads images, and this task has tokens: set embedding=default")
        if channels < 1:
            raise ValueError(f"embedding.channels is {channels}: give at least 1, such as embedding.channels=3")
        image, self.patch_size = pair("image_size", image_size), patch_of(image_size, patch_size)
        self.kernel = (channels, *self.patch_size)
        size = self._grid_size(*image)
        if min(size) < 1:
            raise ValueError(
                f"embedding.patch_size={patch_size} is larger than embedding.image_size={image_size}: "
                f"set embedding.patch_size={min(image)} or less"
            )
        self.grid = Grid(size=size, prefix=class_token + distillation_token)
        tokens = {"class_token": class_token, "distillation_token": distillation_token}
        self.map_pieces(size=math.prod(self.kernel), dim=dim, dropout=dropout, **tokens)

    def positions(self, inputs: Tensor) -> Tensor:
        """images (B, C, height, width) → (1, T, 2)."""
        assert self.grid is not None
        return self.grid.positions(self._grid_size(*inputs.shape[-2:]), inputs.device)

    def forward(self, inputs: Tensor, add_positions: Callable[[Tensor], Tensor], types: Tensor | None = None) -> Tensor:
        """images (B, C, height, width) → (B, T, D); `add_positions` maps (B, T, D) → (B, T, D)."""
        if inputs.size(1) != self.kernel[0]:
            raise ValueError(
                f"the images have {inputs.size(1)} channels and the model reads embedding.channels={self.kernel[0]}: "
                f"set embedding.channels={inputs.size(1)}, or convert the images"
            )
        return self.embed(self._cut(inputs), add_positions)

    def _grid_size(self, height: int, width: int) -> tuple[int, int]:
        return height // self.patch_size[0], width // self.patch_size[1]

    def _cut(self, images: Tensor) -> Tensor:
        """(B, C, height, width) → (B, patches, inputs of `projection`), in the order of a convolution's kernel."""
        (rows, columns), (height, width) = self._grid_size(*images.shape[-2:]), self.patch_size
        images = images[..., : rows * height, : columns * width]
        cut = images.unflatten(3, (columns, width)).unflatten(2, (rows, height))
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


MOST_PATCHES = 14  # along a side, by default


def patch_of(image_size: int | list[int], patch_size: int | list[int] | None) -> tuple[int, int]:
    """Height and width of a patch."""
    if patch_size is not None:
        return pair("patch_size", patch_size)
    height, width = (_share(side) for side in pair("image_size", image_size))
    return height, width


def _share(side: int) -> int:
    """The least part of a side of which there are so few, one that divides it if there is one up to twice as large."""
    least = -(-side // MOST_PATCHES)
    return next((part for part in range(least, 2 * least + 1) if side % part == 0), least)


def pair(name: str, size: int | list[int]) -> tuple[int, int]:
    """Height and width."""
    both = [size, size] if isinstance(size, int) else list(size)
    if len(both) != 2 or min(both) < 1:
        raise ValueError(
            f"embedding.{name} is {size}: give one number or height and width, such as embedding.{name}=[32,64]"
        )
    return both[0], both[1]
