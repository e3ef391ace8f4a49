"""Closed-form statistics of success counts and of times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from daps_robot.errors import ConfigError

Z95 = 1.959963984540054
"""The standard normal quantile of a two-sided 95% interval."""


def wilson_interval(successes: int, episodes: int, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a success probability (Wilson 1927, equation without continuity correction).

    Unlike the normal approximation it stays inside [0, 1] and does not shrink to a point at 0 or all successes.

    Args:
        successes: how many episodes succeeded.
        episodes: out of how many.
        z: standard normal quantile; 1.96 for 95%.

    Returns:
        The lower and the upper end; (0, 1) for no episodes.

    Raises:
        ConfigError: for counts that cannot be (0 ≤ successes ≤ episodes does not hold).
    """
    if not 0 <= successes <= episodes:
        raise ConfigError(f"{successes} successes in {episodes} episodes cannot be; 0 ≤ successes ≤ episodes must hold")
    if episodes == 0:
        return 0.0, 1.0
    rate, z2 = successes / episodes, z * z
    scale = 1.0 / (1.0 + z2 / episodes)
    centre = scale * (rate + z2 / (2 * episodes))
    half = scale * z * math.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes * episodes))
    # The ends are exactly 0 at no success and 1 at all; rounding would leave 1e-17 on either side.
    lower = 0.0 if successes == 0 else max(0.0, centre - half)
    upper = 1.0 if successes == episodes else min(1.0, centre + half)
    return lower, upper


@dataclass(frozen=True)
class SuccessInterval:
    """A success rate with its 95% Wilson interval."""

    successes: int
    episodes: int
    rate: float
    ci95: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{self.successes}/{self.episodes} = {self.rate:.1%} (95% {low:.1%} to {high:.1%})"


def success_interval(successes: int, episodes: int) -> SuccessInterval:
    """Rate and 95% Wilson interval of `successes` out of `episodes`; the rate of no episodes is NaN."""
    rate = successes / episodes if episodes else math.nan
    return SuccessInterval(successes, episodes, rate, wilson_interval(successes, episodes))


def percentiles(values: Sequence[float] | Float[np.ndarray, " k"], wanted: Sequence[int] = (50, 99)) -> dict[str, float]:
    """Percentiles by name, such as {"p50": 1.2, "p99": 3.4}, in the unit of `values`.

    Each is an observed value (the smallest one that at least that share of `values` does not exceed), not an
    interpolation: a p99 of times should be a time that occurred.

    Raises:
        ConfigError: for no values at all.
    """
    if len(values) == 0:
        raise ConfigError("percentiles of no values at all: measure at least one")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return {f"p{q}": float(np.quantile(ordered, q / 100, method="inverted_cdf")) for q in wanted}
