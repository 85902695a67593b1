"""Labels images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from txtrain.data.pixels import FOREIGN, Pixels, read_image, why_unreadable
from txtrain.errors import UserError
from txtrain.predict.labels import label_records
from txtrain.predict.predictor import Given, Predictor, path_beside

if TYPE_CHECKING:
    from txtrain.trained import Trained


class ImageLabeller(Predictor):
    """The label of each image, and the probabilities of all labels.

    Args:
        trained: a classifier of images.
        file: field of a JSON object with the image's path; a line of text is a path too.
        top: how many labels to tell, the likeliest first. Default: all.
    """

    suffixes = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}) | FOREIGN

    def __init__(self, trained: "Trained", *, file: str = "file", top: int | None = None) -> None:
        super().__init__(trained)
        if top is not None and top < 1:
            raise UserError(f"top={top} tells nothing: type top=1 or more")
        assert isinstance(trained.inputs, Pixels)
        self.file, self.top, self.pixels = file, top, trained.inputs

    def beside(self, given: Given, folder: Path) -> Given:
        return path_beside(given, folder, self.file)

    def read(self, given: Given) -> Tensor:
        path = given.get(self.file) if isinstance(given, Mapping) else given
        if not isinstance(path, str | Path) or not str(path):
            raise UserError(f"it names no image: put its path into {self.file}, or type file=FIELD")
        path = Path(path).expanduser()
        if reason := why_unreadable(str(path), self.pixels.channels):
            raise UserError(f"{path} cannot be read ({reason})")
        return self.pixels(read_image(path))

    def predict(self, inputs: Sequence[Tensor]) -> list[dict[str, Any]]:
        model = self.trained.model
        images = torch.stack(list(inputs)).to(self.trained.device, next(model.parameters()).dtype)
        return label_records(model(images).float(), self.trained, self.top)
