"""What an encoding makes of two positions, drawn: as a matrix, over distance, or over a grid."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from txtrain.model.encoding import Encoding
from txtrain.model.encoding.similarity import Hook, relations
from txtrain.model.grid import Grid
from txtrain.model.transformer import TransformerStack
from txtrain.plots.canvas import new_figure, png
from txtrain.plots.view import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POSITIONS = 512
MOST_TILES = 14  # patches of a side whose likeness to all others is shown
MOST_HEADS = 8
TITLES: dict[Hook, str] = {
    "embed": "cosine of position vectors",
    "rotate": "what rotation leaves of the score of\nan equal query and key",
    "bias": "bias on the scores of each head",
}


def draw_encodings(model: nn.Module) -> dict[str, bytes]:
    """A PNG for each stack whose encoding shows anything, by name; for `none` there is nothing to see."""
    stacks = [module for module in model.modules() if isinstance(module, TransformerStack)]
    pictures = {}
    for stack in stacks:
        name = "encoding" if len(stacks) == 1 else f"encoding_{'decoder' if stack.causal else 'encoder'}"
        found = relations(stack.encoding, positions_of(stack.encoding))
        if found:
            pictures[name] = png(partial(_figure, stack.encoding, found))
    return pictures


def positions_of(encoding: Encoding) -> Tensor:
    """Those of training, (1, T), but no more than can be seen; all of a grid (1, T, axes)."""
    stack = encoding.stack
    device = next(iter([parameter.device for parameter in encoding.parameters()] or [torch.device("cpu")]))
    if stack.grid is not None:
        return stack.grid.positions(stack.grid.size, device)
    return torch.arange(min(stack.max_len, MOST_POSITIONS), device=device)[None]


def by_distance(relation: Image, *, causal: bool) -> tuple[Image, Image]:
    """(H, T, T) → how far keys are from one query, and its rows (H, T).

    The query is the last one where all see back only, and the middle one otherwise; keys after it are at the right.
    """
    query = relation.shape[1] - 1 if causal else relation.shape[1] // 2
    distance = np.arange(relation.shape[1]) - query
    return (-distance if causal else distance).astype(np.float32), relation[:, query]


def tiles(relation: Image, grid: Grid) -> Image:
    """(T, T) of a grid → a picture of pictures: at the place of a patch, how like all patches are to it."""
    rows, columns = grid.size
    inside = relation[grid.prefix :, grid.prefix :].reshape(rows, columns, rows, columns)
    down, right = (np.unique(np.linspace(0, n - 1, min(n, MOST_TILES)).round().astype(int)) for n in grid.size)
    inside = inside[np.ix_(down, right)]
    framed = np.pad(inside, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    return framed.transpose(0, 2, 1, 3).reshape(len(down) * (rows + 1), -1)


def _figure(encoding: Encoding, found: Mapping[Hook, Tensor]) -> "Figure":
    grid, shown = encoding.stack.grid, {hook: relation.cpu().numpy() for hook, relation in found.items()}
    panels = [
        (hook, relation[head : head + 1] if grid is not None else relation)
        for hook, relation in shown.items()
        for head in range(min(len(relation), MOST_HEADS) if grid is not None else 1)
    ]
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure = new_figure(5.0 * columns if columns < 3 else 3.2 * columns, 4.4 * lines if columns < 3 else 3.2 * lines)
    for axes in (all_axes := figure.subplots(lines, columns, squeeze=False).flatten())[len(panels) :]:
        axes.axis("off")
    for number, (axes, (hook, relation)) in enumerate(zip(all_axes, panels, strict=False)):
        if grid is not None:
            limits = (float(shown[hook].min()), float(shown[hook].max()))  # the same for all heads
            _draw_on_grid(figure, axes, hook, relation[0], grid, limits, f", {number}" if hook == "bias" else "")
        elif hook == "embed":
            _draw_matrix(figure, axes, relation[0])
        else:
            _draw_over_distance(axes, hook, relation, causal=encoding.stack.causal)
    figure.suptitle(f"What {type(encoding).__name__} says of two positions", fontsize=11)
    return figure


def _draw_matrix(figure: Any, axes: Any, matrix: Image) -> None:
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set_title(TITLES["embed"], fontsize=9)
    axes.set_xlabel("position")
    axes.set_ylabel("position")
    figure.colorbar(image, ax=axes, shrink=0.8)


def _draw_over_distance(axes: Any, hook: Hook, relation: Image, *, causal: bool) -> None:
    distance, rows = by_distance(relation, causal=causal)
    for head, row in enumerate(rows):
        axes.plot(distance, row, linewidth=1, label=f"head {head}" if len(rows) > 1 else None)
    axes.set_title(TITLES[hook], fontsize=9)
    axes.set_xlabel("tokens back from the query" if causal else "tokens from the query")
    axes.grid(alpha=0.3)
    if 1 < len(rows) <= 2 * MOST_HEADS:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def _draw_on_grid(
    figure: Any, axes: Any, hook: Hook, relation: Image, grid: Grid, limits: tuple[float, float], which: str
) -> None:
    if hook == "embed":
        image = axes.imshow(tiles(relation, grid), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(f"{TITLES[hook]}: at each\npatch's place, of it and all others", fontsize=9)
    else:
        rows, columns = grid.size
        middle = grid.prefix + (rows // 2) * columns + columns // 2
        shown = relation[middle, grid.prefix :].reshape(rows, columns)
        image = axes.imshow(shown, cmap="viridis", vmin=limits[0], vmax=limits[1])
        axes.plot([columns // 2], [rows // 2], marker="x", color="white")
        axes.set_title(f"{TITLES[hook]}{which}", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    figure.colorbar(image, ax=axes, shrink=0.7)
