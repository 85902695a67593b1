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

DIM = 0.25  # how bright a picture is where nothing looks
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


def by_brightness(picture: Image, heat: Image, covered: tuple[int, int]) -> Image:
    """The picture (height, width, 3) in its own colours, as bright as `heat` (rows, columns; 0 to 1) is over it."""
    colours = np.stack([picture] * 3, axis=-1) if picture.ndim == 2 else picture
    rows, columns = (np.arange(pixels) * cells // pixels for pixels, cells in zip(covered, heat.shape, strict=True))
    height, width = picture.shape[:2]
    rows, columns = rows[:height], columns[:width]
    bright = np.full((height, width), DIM, dtype=np.float32)
    bright[: len(rows), : len(columns)] += (1 - DIM) * heat[rows][:, columns]
    return colours * bright[..., None]


def _figure(maps: Sequence[AttentionMap], queries: Reading, keys: Reading) -> "Figure":
    layers, heads = (list(dict.fromkeys(getattr(one, name) for one in maps)) for name in ("layer", "head"))
    width, height = _panel(queries, keys)
    figure = new_figure(width * len(heads) + 1.6, height * len(layers) + 1)
    panels = figure.subplots(len(layers), len(heads), squeeze=False)
    shown = [_shares(found.weights[0].numpy(), queries, keys) for found in maps]
    most = max(map(_large, shown))
    for found, shares in zip(maps, shown, strict=True):
        line, column = layers.index(found.layer), heads.index(found.head)
        axes = panels[line][column]
        axes.set_title(f"layer {found.layer}, head {found.head}", fontsize=9)
        if isinstance(keys, Area):
            _draw_over(axes, shares, keys, most)
        else:
            assert isinstance(queries, Row)
            axes.imshow(shares, cmap="viridis", vmin=0, vmax=most, aspect="auto", interpolation="nearest")
            name_ticks(axes.yaxis, queries.names if column == 0 else [])
            name_ticks(axes.xaxis, keys.names if line == len(layers) - 1 else [], rotation=90)
    if isinstance(keys, Area):
        whose = "the class token takes of each patch" if keys.prefix else "patches take of each patch, in the mean"
        how = "the stronger the colour" if keys.upward else "the brighter"
        figure.suptitle(f"Attention: what {whose}: {how}, the more", fontsize=10)
    elif isinstance(queries, Row):
        figure.suptitle("Attention: what each query takes of each key", fontsize=10)
        figure.supylabel(f"queries ({queries.unit})", fontsize=9)
        figure.supxlabel(f"keys ({keys.unit})", fontsize=9)
    _add_scale(figure, panels, most, "viridis" if isinstance(keys, Row) else "autumn" if keys.upward else "gray")
    return figure


def _shares(weights: Image, queries: Reading, keys: Reading) -> Image:
    """The shares in a panel: one for each patch of a picture, or one for each query and key, without padding."""
    if isinstance(keys, Area):
        return over_area(weights, keys)
    assert isinstance(queries, Row)
    return weights[: len(queries.names), : len(keys.names)]


def _large(shares: Image) -> float:
    """The top of the scale: the 99th percentile, since one large share would make all others dark."""
    return float(np.quantile(shares[shares > 0], 0.99)) if (shares > 0).any() else 1e-30


def _add_scale(figure: "Figure", panels: Any, most: float, colours: str) -> None:
    """One scale for all panels, at their right."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import PercentFormatter

    scale = ScalarMappable(Normalize(0, most), colours)
    bar = figure.colorbar(scale, ax=panels, extend="max", shrink=0.8, pad=0.02, format=PercentFormatter(1.0))
    bar.set_label("share of the query's attention", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _panel(queries: Reading, keys: Reading) -> tuple[float, float]:
    """Width and height in inches."""
    if isinstance(keys, Area):
        height, width = keys.picture.shape[:2]
        return (4.0, 2.0) if keys.upward else (2.4, 2.4 * height / width + 0.3)
    assert isinstance(queries, Row)
    return tuple(min(max(0.12 * len(reading.names), 2.2), 6.0) for reading in (keys, queries))  # type: ignore[return-value]


def _draw_over(axes: Any, shares: Image, area: Area, most: float) -> None:
    """Images keep their colours, since these are what is recognised; a spectrogram has none."""
    heat = (shares / most).clip(0, 1)
    if not area.upward:
        show_picture(axes, by_brightness(area.picture, heat, area.covered))
        return
    show_picture(axes, area.picture, upward=True)
    height, width = area.covered
    extent = (-0.5, width - 0.5, -0.5, height - 0.5)
    axes.imshow(heat, cmap="autumn", vmin=0, vmax=1, alpha=0.8 * heat, extent=extent, origin="lower", aspect="auto")
    axes.set_xlim(-0.5, area.picture.shape[1] - 0.5)
