"""A confusion matrix, drawn: which labels were taken for which."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from txtrain.plots.canvas import name_ticks, new_figure, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRITTEN = 20  # labels up to which counts are written into the matrix
MOST = 40  # labels that are shown; of more, those that are confused most

Counts = NDArray[np.int64]


def draw_confusion(counts: Counts, labels: Sequence[str]) -> bytes:
    """A PNG of (L, L) counts: how many of the label of a row were taken for that of a column.

    Colours are shares of a row. Where there are more labels than can be seen, it shows those that are confused most.
    """
    chosen = most_confused(counts, MOST)
    return png(partial(_figure, counts, labels, chosen))


def most_confused(counts: Counts, most: int) -> list[int]:
    """The labels of the largest counts that are not on the diagonal, as many as there may be, in their own order."""
    if len(counts) <= most:
        return list(range(len(counts)))
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    chosen: dict[int, None] = {}
    for place in np.argsort(-wrong, axis=None, kind="stable").tolist():
        pair = divmod(place, len(counts))
        if len(chosen.keys() | set(pair)) > most:
            break
        chosen |= dict.fromkeys(pair)
    return sorted(chosen)


def _figure(counts: Counts, labels: Sequence[str], chosen: Sequence[int]) -> "Figure":
    samples = counts.sum(1)
    shares = np.divide(counts, samples[:, None], out=np.full(counts.shape, np.nan), where=samples[:, None] > 0)
    shown = shares[np.ix_(chosen, chosen)]
    side = 2.5 + min(max(0.42 * len(chosen), 2.0), 11.0)
    figure = new_figure(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1)
    axes.set_facecolor("lightgray")  # shows in rows of labels that no sample has
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the label's samples")
    names = [labels[label] for label in chosen]
    name_ticks(axes.xaxis, names, rotation=90)
    name_ticks(axes.yaxis, [f"{name} ({samples[label]})" for name, label in zip(names, chosen, strict=True)])
    axes.set_xlabel("taken for")
    axes.set_ylabel("label (samples)")
    few = f": the {len(chosen)} of {len(labels)} that are confused most" if len(chosen) < len(labels) else ""
    axes.set_title(f"Which labels were taken for which{few}", fontsize=10)
    if len(chosen) <= WRITTEN:
        for row, label in enumerate(chosen):
            for column, other in enumerate(chosen):
                if counts[label, other]:
                    color = "white" if shown[row, column] > 0.5 else "black"
                    axes.text(column, row, str(counts[label, other]), ha="center", va="center", color=color, fontsize=8)
    return figure
