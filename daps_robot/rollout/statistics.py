"""Statistics of success counts, of scores and of times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from daps_robot.errors import ConfigError

Z95 = 1.959963984540054
"""The standard normal quantile of a two-sided 95% interval."""


def wilson_interval(successes: float, episodes: float, z: float = Z95) -> tuple[float, float]:
    """The Wilson score interval of a success probability (Wilson 1927, equation without continuity correction).

    Unlike the normal approximation it stays inside [0, 1] and does not shrink to a point at 0 or all successes.

    Args:
        successes: how many episodes succeeded; need not be whole, for episodes that count for more or less than one.
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


_DRAWS = 20_000
_AT_A_TIME = 2**20  # numbers that are drawn together: 8 MiB


def bounded_mean_interval(values: Sequence[float] | Float[np.ndarray, " k"]) -> tuple[float, float]:
    """A 95% interval of the mean of independent values in [0, 1] (Learned-Miller and Thomas 2019, arXiv 1905.06208).

    Whatever the distribution, its cumulative probabilities at the k ordered values are like k ordered uniform numbers. The
    spacings of drawn ones weigh the values, and the one that is left over weighs a further value: 1 for the upper end, 0 for the
    lower. The ends are the 97.5% and the 2.5% quantile of such means.

    For zeros and ones this is the interval of Clopper and Pearson; for many spread values it comes near Student's, which is too
    short for few values with a heap at 1, and a point where all are equal. That it covers the mean with 95% or more is proven for
    zeros and ones, and conjectured for the rest.

    Returns:
        The lower and the upper end, the same for the same values in any order; (0, 1) for no values.

    Raises:
        ConfigError: for a value outside [0, 1].
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not ((ordered >= 0) & (ordered <= 1)).all():
        raise ConfigError("an interval of a mean score needs scores from 0 to 1")
    parts, generator = np.stack([ordered, 1.0 - ordered], axis=1), np.random.default_rng(0)
    means = []
    rows = max(1, _AT_A_TIME // (len(ordered) + 1))
    for start in range(0, _DRAWS, rows):
        weights = generator.standard_exponential((min(rows, _DRAWS - start), len(ordered) + 1))
        means.append(weights[:, 1:] @ parts / weights.sum(axis=1, keepdims=True))
    lower, above = np.quantile(np.concatenate(means), 0.025, axis=0).tolist()
    return lower, 1.0 - above


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
