"""Figures as PNG, by matplotlib, without a display."""

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from txtrain.errors import UserError
from txtrain.plots.view import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
MOST_NAMES = 48  # along an axis; of more every n-th is written


def check_matplotlib(option: str) -> None:
    """Refuses what could not be drawn."""
    if find_spec("matplotlib") is None:
        raise UserError(f"{option} needs matplotlib, which is not installed: type pip install 'txtrain[plots]'")


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches."""
    from matplotlib.figure import Figure  # without pyplot, which would look for a display

    return Figure(figsize=(width, height), layout="constrained")


def png(draw: Callable[[], "Figure"]) -> bytes:
    """What `draw` makes, as a file. Texts are shown as they are, be they ever so much like formulas."""
    from matplotlib import rc_context

    buffer = BytesIO()
    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        draw().savefig(buffer, dpi=DPI, format="png")
    return buffer.getvalue()


def name_ticks(axis: Any, names: Sequence[str], *, rotation: float = 0.0) -> None:
    """Names at 0, 1, 2, ..., or as many of them as there is room for."""
    step = max(1, -(-len(names) // MOST_NAMES))
    axis.set_ticks(range(0, len(names), step), names[::step], fontsize=7, rotation=rotation)


def show_picture(axes: Any, picture: Image, *, upward: bool = False) -> None:
    """A picture without numbers around it: colours as they are, or one number for each pixel in grey."""
    axes.imshow(picture, cmap="gray", origin="lower" if upward else "upper", aspect="auto" if upward else "equal")
    axes.set_xticks([])
    axes.set_yticks([])


def as_array(content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A PNG file → (height, width, 3)."""
    from PIL import Image as Pillow

    with Pillow.open(BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))
