"""The loss against the length of context, drawn."""

from collections.abc import Sequence
from pathlib import Path

from txtrain.errors import UserError
from txtrain.evaluate.result import Result
from txtrain.plots.canvas import check_matplotlib


def check_plot(path: Path) -> None:
    """Refuses, before anything is computed, what could not be drawn or written."""
    check_matplotlib("--plot")
    from matplotlib.figure import Figure

    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in kinds:
        raise UserError(f"--plot {path} has no extension of a picture: name a file such as {path.stem}.png")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--plot {path}: there is no folder {path.parent}: make it, or name another file")


def plot(path: Path, results: Sequence[Result]) -> None:
    """A curve for each model, and a dashed line where its training sequences ended."""
    from matplotlib.figure import Figure  # without pyplot, which would look for a display
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    ends: dict[int, list[str]] = {}
    for number, result in enumerate(results):
        filled = [bucket for bucket in result.buckets if bucket.targets]
        middle = [(bucket.first * bucket.last) ** 0.5 for bucket in filled]
        axes.plot(middle, [bucket.loss for bucket in filled], color=f"C{number}", marker=".", label=result.label)
        if filled[-1].last > result.trained_len:
            ends.setdefault(result.trained_len, []).append(f"C{number}")
    for length, colors in ends.items():  # one line for all that end there, of no one's colour if they are several
        axes.axvline(length, color=colors[0] if len(colors) == 1 else "gray", linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("context (tokens); dashed: the longest in training")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.set_title("Loss against the length of the context", fontsize=11)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"--plot {path} cannot be written ({error.strerror}): name another file") from error
