"""Learning-rate schedules: a factor on the learning rate for each optimizer step."""

import math
from abc import ABC, abstractmethod
from typing import Literal


def in_steps(amount: int | float, total_steps: int) -> int:
    """A number of steps that is given as such, or as a fraction of all."""
    return amount if isinstance(amount, int) else round(amount * total_steps)


def check_amount(name: str, amount: int | float) -> None:
    """Refuses what is neither a number of steps nor a fraction of them."""
    if amount < 0 or (isinstance(amount, float) and amount >= 1):
        raise ValueError(
            f"schedule.{name} is {amount}: give a whole number of steps or a fraction of them below 1, "
            f"such as schedule.{name}=100 or schedule.{name}=0.05"
        )


class Schedule(ABC):
    """A linear warm-up, then a curve of its own. Steps count from 0; the warm-up has no step of size zero.

    Args:
        warmup: steps in which the learning rate rises, or a fraction of all steps.
    """

    def __init__(self, *, warmup: int | float = 0) -> None:
        check_amount("warmup", warmup)
        self.warmup = warmup

    def scale(self, step: int, total_steps: int) -> float:
        """The factor at a step of `total_steps`."""
        warmup = in_steps(self.warmup, total_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return self.curve(step, warmup, total_steps)

    @abstractmethod
    def curve(self, step: int, warmup: int, total_steps: int) -> float:
        """The factor at a step after the `warmup` steps, 1 at the first of them."""


class Decay(Schedule):
    """A schedule that falls to a fraction of the peak.

    Args:
        warmup: as in `Schedule`.
        end: the factor from the last step on.
    """

    def __init__(self, *, warmup: int | float = 0, end: float = 0.0) -> None:
        super().__init__(warmup=warmup)
        if not 0.0 <= end <= 1.0:
            raise ValueError(
                f"schedule.end is {end}: give a fraction of the peak from 0 to 1, such as schedule.end=0.1"
            )
        self.end = end

    def curve(self, step: int, warmup: int, total_steps: int) -> float:
        start = self.start(warmup, total_steps)
        if step >= total_steps:
            return self.end
        if step < start:
            return 1.0
        return self.end + (1.0 - self.end) * self.remaining((step - start) / (total_steps - start))

    def start(self, warmup: int, total_steps: int) -> int:
        """The step at which the fall begins."""
        return warmup

    @abstractmethod
    def remaining(self, progress: float) -> float:
        """The share of the fall that is still ahead, from 1 at progress 0 to 0 at 1."""


class Cosine(Decay):
    """Half a cosine from the peak to the end (https://arxiv.org/abs/1608.03983)."""

    def remaining(self, progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))


class Linear(Decay):
    """A straight line from the peak to the end."""

    def remaining(self, progress: float) -> float:
        return 1.0 - progress


class WarmupStableDecay(Decay):
    """Constant, then a fall in the last steps (https://arxiv.org/abs/2404.06395), so the length can be chosen late.

    Args:
        warmup, end: as in `Decay`.
        decay: steps of the fall, or a fraction of all steps.
        shape: 1 - √progress is the better one in https://arxiv.org/abs/2405.18392, or a straight line.
    """

    def __init__(
        self,
        *,
        warmup: int | float = 0,
        decay: int | float = 0.2,
        end: float = 0.0,
        shape: Literal["sqrt", "linear"] = "sqrt",
    ) -> None:
        super().__init__(warmup=warmup, end=end)
        check_amount("decay", decay)
        if isinstance(warmup, float) and isinstance(decay, float) and warmup + decay > 1:
            raise ValueError(
                f"schedule.warmup={warmup} and schedule.decay={decay} are more than all steps: "
                f"make one smaller, such as schedule.decay={round(1 - warmup, 3)}"
            )
        self.decay, self.shape = decay, shape

    def start(self, warmup: int, total_steps: int) -> int:
        return max(warmup, total_steps - in_steps(self.decay, total_steps))

    def remaining(self, progress: float) -> float:
        return 1.0 - (math.sqrt(progress) if self.shape == "sqrt" else progress)


class Constant(Schedule):
    """The peak for ever."""

    def curve(self, step: int, warmup: int, total_steps: int) -> float:
        return 1.0


class InverseSqrt(Schedule):
    """Falls as 1 / √step, with no end in view (https://arxiv.org/abs/1706.03762)."""

    def curve(self, step: int, warmup: int, total_steps: int) -> float:
        return math.sqrt((warmup + 1) / (step + 1))
