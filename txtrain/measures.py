"""Metrics of validation by name: which of them a run has, and which way is better."""

from collections.abc import Sequence
from typing import Literal

from txtrain.errors import UserError
from txtrain.schema import nearest

Mode = Literal["min", "max"]

LOWER = ("loss", "pair_loss", "perplexity", "bits_per_byte", "wer", "cer")
HIGHER = ("accuracy", "pair_accuracy", "top_5", "f1", "precision", "recall", "matthews", "bleu", "chrf")


def find_measure(key: str, typed: str, measured: Sequence[str], mode: Mode | None = None) -> tuple[str, Mode]:
    """A metric by its name in metrics.jsonl, and whether less of it or more is better.

    Args:
        key: the override that names it.
        typed: its name, with `validation/` (or `val/`) before it or not.
        measured: the names of all that the run's validation reports, without it.
        mode: which way is better; None: as is known of the metric.

    Raises:
        UserError: validation does not report it, or nothing is known of its direction.
    """
    name = typed.removeprefix("validation/").removeprefix("val/")
    if name not in measured:
        meant = nearest(name, measured) or "loss"
        raise UserError(
            f"{key}={typed} is no metric of this run's validation, which has {', '.join(measured)}: type {key}={meant}"
        )
    last = name.rpartition("/")[2]
    found: Mode | None = mode or ("min" if last in LOWER else "max" if last in HIGHER else None)
    if found is None:
        option = key.rpartition(".")[0] + (".best_mode" if key == "save.best" else ".mode")
        raise UserError(
            f"{key}={typed} may be better when it rises or when it falls: type {option}=max or {option}=min"
        )
    return f"validation/{name}", found
