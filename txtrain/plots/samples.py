"""Samples and what the model says of them, drawn: pictures with two labels each, or a table of texts."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from txtrain.plots.canvas import new_figure, png, show_picture
from txtrain.plots.view import Image
from txtrain.printable import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from txtrain.task.base import Example

RIGHT, WRONG = "tab:green", "tab:red"
WIDTH, LINES = 100, 6  # most letters of a line, and lines of each part
Line = tuple[str, dict[str, str]]  # a name, and by colours the texts that stand beside it, one over the other
SIZES = {True: (4, 3.4, 2.0), False: (6, 1.7, 2.0)}  # columns, and width and height of each, of sound and of images


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample that is seen.

    Args:
        picture: of it.
        reference: what is right.
        said: what the model says.
        probability: that it gives to this, if it gives one.
    """

    picture: Image
    reference: str
    said: str
    probability: float | None = None


def draw_pictures(samples: Sequence[Shown], *, upward: bool) -> bytes:
    """A PNG of pictures, each with what is right and what the model says, green where they agree."""
    return png(partial(_pictures, samples, upward=upward))


def draw_spectrogram(spectrogram: Image, *, seconds: float) -> bytes:
    """A PNG of a spectrogram (filters, frames) as the model sees it, `seconds` from frame to frame."""
    return png(partial(_spectrogram, spectrogram, seconds))


def draw_table(examples: "Sequence[Example]") -> bytes:
    """A PNG of texts: of each sample what is given, what is right and what the model says."""
    return png(partial(_table, examples))


def _pictures(samples: Sequence[Shown], *, upward: bool) -> "Figure":
    most, width, height = SIZES[upward]
    columns = min(most, len(samples))
    rows = -(-len(samples) // columns)
    figure = new_figure(width * columns, height * rows)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels[len(samples) :]:
        axes.axis("off")
    for axes, sample in zip(panels, samples, strict=False):
        show_picture(axes, sample.picture, upward=upward)
        share = "" if sample.probability is None else f" ({sample.probability:.0%})"
        said, reference = (textwrap.shorten(text, 40, placeholder="…") for text in (sample.said, sample.reference))
        title = f"{said}{share}" if said == reference else f"{said or '(nothing)'}{share}\nis {reference}"
        axes.set_title(title, fontsize=8, color=RIGHT if sample.said == sample.reference else WRONG)
    figure.suptitle("Green is right, red is wrong", fontsize=8)
    return figure


def _spectrogram(spectrogram: Image, seconds: float) -> "Figure":
    filters, frames = spectrogram.shape
    figure = new_figure(min(max(0.012 * frames + 2, 5.0), 14.0), 3.2)
    axes = figure.subplots()
    extent = (0.0, frames * seconds, -0.5, filters - 0.5)
    image = axes.imshow(spectrogram, origin="lower", aspect="auto", cmap="magma", extent=extent)
    axes.set_title("A sample as the model reads it", fontsize=10)
    axes.set_xlabel("seconds")
    axes.set_ylabel("mel filter")
    figure.colorbar(image, ax=axes, label="input of the model")
    return figure


def _table(examples: "Sequence[Example]") -> "Figure":
    lines: list[Line] = []
    for example in examples:
        lines += [*(aligned if example.words else _told)(example), ("", {})]
    height = 0.17 * (len(lines) + 3)
    figure = new_figure(9.0, height)
    figure.set_layout_engine("none")
    title = "Samples and what the model says of them: green is right, red is wrong"
    figure.text(0.02, 1 - 0.26 / height, title, fontsize=10, va="baseline")
    for number, (name, parts) in enumerate(lines, start=3):
        place = 1 - 0.17 * number / height
        figure.text(0.02, place, name, fontsize=8, color="gray", va="baseline")
        for color, text in parts.items():
            figure.text(0.09, place, text, fontsize=8, color=color, va="baseline", family="monospace")
    return figure


def _told(example: "Example") -> Iterator[Line]:
    color = RIGHT if example.said == example.reference else WRONG
    given = [("given", example.given, "black")] if example.given else []
    for name, text, of_part in (*given, ("right", example.reference, "black"), ("model", example.said, color)):
        for number, line in enumerate(wrapped(text)):
            yield "" if number else name, {of_part: line}


def aligned(example: "Example") -> Iterator[Line]:
    """Words with their tags under them, as many lines as there may be; the wrong ones of the model are red."""
    columns = [[one_line(text)[: WIDTH - 1] for text in word] for word in example.words]
    rows, used = [list[list[str]]()], 0
    for column in columns:
        width = max(map(len, column)) + 1
        if rows[-1] and used + width > WIDTH:
            rows.append([])
            used = 0
        rows[-1].append([text.ljust(width) for text in column])
        used += width
    for number, row in enumerate(rows[: LINES // 3]):
        names = ("", "", "") if number else ("text", "right", "model")
        yield names[0], {"black": "".join(text for text, _, _ in row)}
        yield names[1], {"gray": "".join(right for _, right, _ in row)}
        # Letters are equally wide, so each tag is in its place with blanks in those of the other colour.
        yield (
            names[2],
            {
                color: "".join(said if (said == right) == fits else " " * len(said) for _, right, said in row)
                for color, fits in ((RIGHT, True), (WRONG, False))
            },
        )


def wrapped(text: str) -> list[str]:
    """Lines of a text that are not too long nor too many."""
    rows = textwrap.wrap(one_line(text), WIDTH) or ["(nothing)"]
    return rows if len(rows) <= LINES else [*rows[: LINES - 1], "…"]
