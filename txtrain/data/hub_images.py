"""Images of the Hugging Face Hub."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from txtrain.data.hub import HubRows
from txtrain.data.images import Entry, ImageData
from txtrain.data.pixels import to_8_bits
from txtrain.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


class HubImages(ImageData):
    """A data set of the Hugging Face Hub, or a folder that `datasets.load_dataset` reads, of images with labels.

    Args:
        name: such as `uoft-cs/cifar10`.
        config: which of its configurations.
        split: of the data set.
        validation_split: one to validate on. Default: a part of `split`.
        image_field, label_field: columns.
        revision: a branch, tag or commit of the data set.
        base: as in `ImageData`.
    """

    def __init__(
        self,
        *,
        name: str,
        config: str | None = None,
        split: str = "train",
        validation_split: str | None = None,
        image_field: str = "image",
        label_field: str = "label",
        revision: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.image_field, self.label_field = image_field, label_field
        splits = [split, *([validation_split] if validation_split else [])]
        self.rows = [
            HubRows(name=name, config=config, split=part, revision=revision, streaming=False, most=None)
            for part in splits
        ]

    def identity(self) -> Any:
        return [rows.identity(self.image_field, self.label_field) for rows in self.rows]

    @cached_property
    def tables(self) -> list[Any]:
        """The rows of each split, of which each is read when it is asked for."""
        return [rows.table(image_field=self.image_field, label_field=self.label_field) for rows in self.rows]

    def entries(self) -> list[Entry]:
        found = []
        for part, (rows, table) in enumerate(zip(self.rows, self.tables, strict=True)):
            names = getattr(table.features[self.label_field], "names", None)
            for number, label in enumerate(table[self.label_field]):
                place = f"row {number} of {rows.name} {rows.split}"
                if label is None or (names and not 0 <= label < len(names)):
                    raise UserError(f"{place} has no label: set data.label_field, or take another split")
                name = str(names[label] if names else label)
                held_out = bool(part) if len(self.rows) > 1 else None
                found.append(Entry(place=place, label=name, group=f"{part} {number}", held_out=held_out))
        return found

    def image(self, entry: Entry) -> "Image":
        part, number = map(int, entry.group.split())
        try:
            image: Image = self.tables[part][number][self.image_field]
            image.load()
            return to_8_bits(image)
        except (OSError, SyntaxError, ValueError, AttributeError) as error:
            raise UserError(f"{entry.place} cannot be read as an image ({error}): set data.image_field") from error

    def _named(self) -> str:
        return f"data.name={self.rows[0].name}"
