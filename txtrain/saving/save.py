"""When checkpoints are written, and how many are kept: the `save` group."""

from dataclasses import dataclass
from typing import Literal

from txtrain.durations import seconds_of


@dataclass(frozen=True, kw_only=True)
class Save:
    """When to write checkpoints, and how many to keep.

    Args:
        every: optimizer steps from one to the next, or a time such as `30min` or `2h`.
        keep: newest checkpoints to keep; the best one is kept besides.
        best: a metric of validation, by which one is the best.
        best_mode: which way it is better; None: as is known of the metric.
        retry_for: seconds that a run tries to save its last step while the disk is full.
        background: whether training goes on while a checkpoint, once copied to the CPU's memory, is written.
    """

    every: int | str = 100
    keep: int = 2
    best: str = "loss"
    best_mode: Literal["min", "max"] | None = None
    retry_for: float = 60.0
    background: bool = False

    def __post_init__(self) -> None:
        if not (self.steps or self.seconds):
            raise ValueError(f"save.every is {self.every}: give steps (save.every=100) or a time (save.every=30min)")
        if self.retry_for < 0:
            raise ValueError(f"save.retry_for is {self.retry_for}: give seconds, such as save.retry_for=60")
        if self.keep < 1:
            raise ValueError(f"save.keep is {self.keep}: give at least 1, such as save.keep=2")

    @property
    def steps(self) -> int | None:
        return self.every if isinstance(self.every, int) and self.every > 0 else None

    @property
    def seconds(self) -> float | None:
        return None if isinstance(self.every, int) else seconds_of(self.every)
