"""Attention maps, drawn: a row of panels for each layer, a column for each head."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from txtrain.model.maps import AttentionMap, Where
from txtrain.plots.canvas import name_ticks, new_figure, png, show_picture
from txtrain.plots.view import Area, Image, Reading, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READERS: dict[Where, tuple[str, str]] = {  # which stack the queries are of, and which the keys
    "encoder": ("encoder", "encoder"),
    "decoder": ("decoder", "decoder"),
    "cross": ("decoder", "encoder"),
}


def draw_attention(maps: Sequence[AttentionMap], readings: Mapping[str, Reading]) -> dict[str, bytes]:
    """A PNG of each kind of attention, by name; of each map the first sample.

    Args:
        maps: of one pass.
        readings: what encoder and decoder read in it.
    """
    kinds = list(dict.fromkeys(found.where for found in maps))
    pictures = {}
    for kind in kinds:
        name = "attention" if len(kinds) == 1 else f"attention_{kind}"
        chosen = [found for found in maps if found.where == kind]
        queries, keys = (readings[stack] for stack in READERS[kind])
        pictures[name] = png(partial(_figure, chosen, queries, keys))
    return pictures


def over_area(weights: Image, area: Area) -> Image:
    """(Q, K) → (rows, columns): what the class token takes of each patch, or without one all patches in the mean."""
    row = weights[0] if area.prefix else weights.mean(0)
    return row[area.prefix :].reshape(area.size)[:, : area.columns]


def _figure(maps: Sequence[AttentionMap], queries: Reading, keys: Reading) -> "Figure":
    layers, heads = (list(dict.fromkeys(getattr(one, name) for one in maps)) for name in ("layer", "head"))
    width, height = _panel(queries, keys)
    figure = new_figure(width * len(heads) + 1, height * len(layers) + 1)
    panels = figure.subplots(len(layers), len(heads), squeeze=False)
    for found in maps:
        line, column = layers.index(found.layer), heads.index(found.head)
        axes = panels[line][column]
        axes.set_title(f"layer {found.layer}, head {found.head}", fontsize=9)
        weights = found.weights[0].numpy()
        if isinstance(keys, Area):
            _draw_over(axes, weights, keys)
        elif isinstance(queries, Row):
            _draw_matrix(axes, weights, queries, keys, left=column == 0, bottom=line == len(layers) - 1)
    if isinstance(keys, Area):
        whose = "the class token takes of each patch" if keys.prefix else "patches take of each patch, in the mean"
        figure.suptitle(f"What {whose}: the stronger the colour, the more", fontsize=10)
    elif isinstance(queries, Row):
        figure.supylabel(f"queries ({queries.unit})", fontsize=9)
        figure.supxlabel(f"keys ({keys.unit})", fontsize=9)
    return figure


def _panel(queries: Reading, keys: Reading) -> tuple[float, float]:
    """Width and height in inches."""
    if isinstance(keys, Area):
        height, width = keys.picture.shape[:2]
        return (4.0, 2.0) if keys.upward else (2.4, 2.4 * height / width + 0.3)
    assert isinstance(queries, Row)
    return tuple(min(max(0.12 * len(reading.names), 2.2), 6.0) for reading in (keys, queries))  # type: ignore[return-value]


def _draw_over(axes: Any, weights: Image, area: Area) -> None:
    show_picture(axes, area.picture, upward=area.upward)
    height, width = area.covered
    extent = (-0.5, width - 0.5, -0.5, height - 0.5) if area.upward else (-0.5, width - 0.5, height - 0.5, -0.5)
    heat = over_area(weights, area)
    axes.imshow(
        heat,
        cmap="autumn",
        alpha=0.8 * heat / max(heat.max(), 1e-30),
        extent=extent,
        origin="lower" if area.upward else "upper",
        aspect="auto" if area.upward else "equal",
    )
    axes.set_xlim(-0.5, area.picture.shape[1] - 0.5)


def _draw_matrix(axes: Any, weights: Image, queries: Row, keys: Row, *, left: bool, bottom: bool) -> None:
    shown = weights[: len(queries.names), : len(keys.names)]
    # One query with one key would make all others dark.
    most = float(np.quantile(shown[shown > 0], 0.99)) if (shown > 0).any() else 1.0
    axes.imshow(shown, cmap="viridis", vmin=0, vmax=most, aspect="auto", interpolation="nearest")
    axes.set_title(f"{axes.get_title()}: yellow is {most:.0%}", fontsize=9)
    name_ticks(axes.yaxis, queries.names if left else [])
    name_ticks(axes.xaxis, keys.names if bottom else [], rotation=90)
