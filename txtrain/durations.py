"""Lengths of time as they are typed: 90s, 10min, 2h, 1h30min, 00:01:30:00."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from txtrain.errors import UserError

UNITS = {"d": 86400, "h": 3600, "min": 60, "s": 1}
_WITH_UNITS = re.compile("".join(rf"(?:(\d+\.?\d*|\.\d+){unit})?" for unit in UNITS))
_WITH_COLONS = re.compile(r"(\d+):(\d+):(\d+):(\d+)")  # Lightning's form


def seconds_of(text: str) -> float | None:
    """The seconds that a text means; None if it is no length of time."""
    found = _WITH_COLONS.fullmatch(text) or _WITH_UNITS.fullmatch(text)
    if not text or found is None:
        return None
    return sum(float(number or 0) * unit for number, unit in zip(found.groups(), UNITS.values(), strict=True))


def max_seconds(value: Any) -> float | None:
    """The seconds of `trainer.max_time`; None where there is no limit.

    Args:
        value: a text, or the arguments of a timedelta, as in Lightning.

    Raises:
        UserError: it is no length of time above zero.
    """
    if value is None:
        return None
    seconds = None
    if isinstance(value, str):
        seconds = seconds_of(value)
    elif isinstance(value, Mapping):
        try:
            seconds = timedelta(**value).total_seconds()
        except (TypeError, OverflowError):
            seconds = None
    if not seconds or seconds < 0:
        example = f"{value}s" if isinstance(value, int | float) and value > 0 else "10min"
        raise UserError(
            f"trainer.max_time is {value}: give a time with its unit (s, min, h, d), such as trainer.max_time={example}"
        )
    return seconds


def as_typed(seconds: float) -> str:
    """The seconds as one types them: 5400 → 1h30min."""
    text = ""
    for name, unit in UNITS.items():
        if name == "s":
            return text + f"{round(seconds, 3):g}s" * (seconds > 0 or not text)
        count, seconds = divmod(seconds, unit)
        text += f"{count:.0f}{name}" * (count > 0)
    return text
