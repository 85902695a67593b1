"""How samples are shown: the names of the tokens that a model reads, and the pictures that it sees."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtrain.model.grid import on_grid
from txtrain.model.head import IGNORED
from txtrain.printable import one_line

if TYPE_CHECKING:
    from txtrain.task.base import Task

Image = NDArray[np.float32]
Batch = dict[str, Tensor]

LONGEST = 14  # letters of a token's name


@dataclass(frozen=True, kw_only=True)
class Row:
    """Vectors that follow each other.

    Args:
        names: of the real ones, which come first.
        unit: what they are, in a word.
    """

    names: Sequence[str]
    unit: str = "tokens"


@dataclass(frozen=True, kw_only=True)
class Area:
    """Vectors of the patches of a picture.

    Args:
        picture: (height, width), or (height, width, 3).
        size: rows and columns of the grid of patches.
        prefix: vectors that come before those of the grid.
        columns: of the grid that are real.
        covered: height and width of the part of the picture on which these columns stand, in pixels.
        upward: whether the first row is at the bottom.
    """

    picture: Image
    size: tuple[int, int]
    prefix: int
    columns: int
    covered: tuple[int, int]
    upward: bool = False


Reading = Row | Area


class View:
    """What is shown of samples of validation.

    Args:
        task: with its model and data.
    """

    def __init__(self, task: "Task") -> None:
        self.model: Any = task.model
        self.data: Any = task.data

    @abstractmethod
    def readings(self, batch: Batch) -> dict[str, Reading]:
        """What the encoder and the decoder read of the first sample of a batch, as far as there are both."""

    def picture(self, batch: Batch, row: int) -> Image | None:
        """What a sample looks like, for who would rather see it than read."""
        return None

    def alone(self, batch: Batch) -> dict[str, bytes]:
        """PNG files, by name, of the first sample of a batch by itself, where that shows more."""
        return {}

    @property
    def upward(self) -> bool:
        """Whether pictures have their first row at the bottom."""
        return False


class TextView(View):
    """Tokens of one sequence."""

    def readings(self, batch: Batch) -> dict[str, Reading]:
        [ids] = self._real({name: value[:1] for name, value in batch.items()})
        return {"decoder" if self.model.causal else "encoder": Row(names=names_of(self.data.tokenizer, ids))}

    def texts(self, batch: Batch) -> list[str]:
        """The texts, special tokens left out but for those that hide others."""
        rows = zip(batch["tokens"], self.shown(batch), strict=True)
        return [self.data.tokenizer.decode(tokens[kept].tolist()) for tokens, kept in rows]

    def shown(self, batch: Batch) -> Tensor:
        """Which tokens are no padding, and special only where they hide others (B, T)."""
        tokens, masks = batch["tokens"], batch["targets"]
        hidden = masks != IGNORED if masks.dim() == 2 else tokens < 0
        special = torch.tensor(sorted(self.data.tokenizer.special_ids), device=tokens.device)
        return batch.get("padding", torch.ones_like(hidden)) & (hidden | ~torch.isin(tokens, special))

    def _real(self, batch: Batch) -> list[list[int]]:
        """The tokens of each row that are no padding."""
        padding = batch.get("padding")
        lengths = [None] * len(batch["tokens"]) if padding is None else padding.sum(1).tolist()
        return [row[:length] for row, length in zip(batch["tokens"].tolist(), lengths, strict=True)]


class PairView(View):
    """Tokens of a source and of its translation."""

    def readings(self, batch: Batch) -> dict[str, Reading]:
        source, target = batch["source"][0], batch["tokens"][0]
        sources = source[batch["source_padding"][0]].tolist()
        targets = target[batch["targets"][0] != IGNORED].tolist()
        return {
            "encoder": Row(names=names_of(self.data.tokenizer, sources), unit="source tokens"),
            "decoder": Row(names=names_of(self.data.target_tokenizer, targets), unit="target tokens"),
        }


class ImageView(View):
    """Patches of images."""

    def readings(self, batch: Batch) -> dict[str, Reading]:
        picture = self.picture(batch, 0)
        size, prefix = grid_of(self.model, batch["images"])
        patch = self.model.embedding.patch_size
        covered = (size[0] * patch[0], size[1] * patch[1])
        return {"encoder": Area(picture=picture, size=size, prefix=prefix, columns=size[1], covered=covered)}

    def picture(self, batch: Batch, row: int) -> Image:
        """The image as the file has it, of the size and with the channels that the model sees."""
        pixels = self.data.pixels
        values = batch["images"][row].float().cpu().numpy().transpose(1, 2, 0)
        values = (values * np.asarray(pixels.std) + np.asarray(pixels.mean)) / (255 * pixels.scale)
        values = values.clip(0, 1).astype(np.float32)
        return values[..., 0] if values.shape[-1] < 3 else values[..., :3]


class SoundView(View):
    """Vectors of a spectrogram: of times, or of patches."""

    def readings(self, batch: Batch) -> dict[str, Reading]:
        embedding, frames, lengths = self.model.embedding, batch["frames"], batch["lengths"]
        times = int(embedding.times(lengths[:1]))
        if embedding.grid is None:
            hop = self.data.features.hop / self.data.features.sample_rate
            seconds = hop * int(lengths[0]) / times
            return {"encoder": Row(names=[f"{place * seconds:.2f}" for place in range(times)], unit="seconds")}
        (bands, columns), prefix = grid_of(self.model, frames)
        (high, wide), (down, right) = embedding.patch_size, embedding.stride
        area = Area(
            picture=self.picture(batch, 0),
            size=(bands, columns),
            prefix=prefix,
            columns=times,
            covered=((bands - 1) * down + high, (times - 1) * right + wide),
            upward=True,
        )
        return {"encoder": area}

    def picture(self, batch: Batch, row: int) -> Image:
        """The log-mel spectrogram (filters, frames), low frequencies first."""
        length = int(batch["lengths"][row])
        return batch["frames"][row, :length].float().cpu().numpy().T

    def alone(self, batch: Batch) -> dict[str, bytes]:
        from txtrain.plots.samples import draw_spectrogram

        seconds = self.data.features.hop / self.data.features.sample_rate
        return {"spectrogram": draw_spectrogram(self.picture(batch, 0), seconds=seconds)}

    @property
    def upward(self) -> bool:
        return True


def names_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What tokens stand for, each by itself."""
    found = []
    for token in ids:
        text = one_line(tokenizer.core.decode([token], skip_special_tokens=False))
        found.append(text.strip()[:LONGEST] or "␣" * bool(text) or str(tokenizer.core.id_to_token(token)))
    return found


def in_brackets(decode: Callable[[list[int]], str], tokens: Sequence[int], marked: Sequence[bool]) -> str:
    """The text of tokens, each run of marked ones in brackets: `The [cat] sat`."""
    text, done = "", ""
    ends = [place for place in range(1, len(tokens)) if marked[place] != marked[place - 1]]
    for end in [*ends, len(tokens)]:
        whole = decode(list(tokens[:end]))
        part, done = whole[len(done) :], whole
        if end and marked[end - 1]:
            word = part.strip() or part
            space = part[: part.index(word)] if part else ""
            part = f"{space}[{word}]{part[len(space) + len(word) :]}"
        text += part
    return text


def grid_of(model: Any, inputs: Tensor) -> tuple[tuple[int, int], int]:
    """Rows and columns of the grid on which the vectors of inputs stand, and how many come before it."""
    positions = model.embedding.positions(inputs)
    inside = on_grid(positions)[0]
    rows, columns = (len(axis.unique()) for axis in positions[0, inside].unbind(-1))
    return (rows, columns), int((~inside).sum())
