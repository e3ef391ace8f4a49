"""How fast a training goes, measured apart from it: what a step count means in seconds, whatever else the machine was doing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """How long a step takes.

    Attributes:
        warm_steps: of the warm start; 0 without one.
        warm_ms: milliseconds of such a step.
        step_ms: milliseconds of any other.
    """

    warm_steps: int
    warm_ms: float
    step_ms: float

    def seconds(self, steps: float) -> float:
        """How long so many steps take, from the first."""
        warm = min(steps, self.warm_steps)
        return (warm * self.warm_ms + (steps - warm) * self.step_ms) / 1e3

    def steps(self, seconds: float) -> int:
        """How many steps end within so many seconds; at least one."""
        after = seconds - self.seconds(self.warm_steps)
        steps = self.warm_steps + after * 1e3 / self.step_ms if after > 0 else seconds * 1e3 / self.warm_ms
        return max(1, int(steps))
