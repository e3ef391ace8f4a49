"""Policies that were trained several times and played on the same start states: their means and differences, with intervals.

Outcomes are numbers in [0, 1] (success, or a score), one row a training seed, one column a start state, the same start states for
every policy; letters s (or r) and e in the shapes here. Both are samples: of the trainings that could have been, and of the start
states that could have come up. An interval that leaves out either is too narrow: where seeds differ by a few points, Wilson's
interval of all episodes pooled holds the truth in 50 to 80% of cases instead of 95, the t interval of the seeds' means alone in
75 to 95 (`tests/rollout/test_across_seeds.py`, docs/evaluation.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from daps_robot.errors import ConfigError
from daps_robot.rollout.statistics import Z95, wilson_interval


@dataclass(frozen=True)
class Interval:
    """A mean, or a difference of means, with its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def clear_of_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def mean_over_seeds(outcomes: Float[np.ndarray, "s e"]) -> Interval:
    """The mean of outcomes in [0, 1] with a 95% interval for other trainings and other start states of the same kind.

    The variance of the mean is that of the crossed two-way random-effects model (Searle, Casella & McCulloch 1992, ch. 4), its
    degrees of freedom are Satterthwaite's (1946). The interval is Wilson's at the number of independent episodes that would tell
    as much (as Korn & Graubard 1998 count them), which keeps it inside [0, 1] and away from a point at 0 and 1. They are never
    more than were played, so it is never narrower than Wilson's of all episodes: scores that hardly vary would count for many
    thousands, though a few episodes say nothing of rare failures. One training seed tells nothing of others: the interval is then
    that of one policy on other start states, of zeros and ones plain Wilson's.

    Raises:
        ConfigError: for outcomes outside [0, 1], none at all, or several seeds on one start state.
    """
    _check(outcomes)
    spread = _spread(outcomes)
    return Interval(float(outcomes.mean()), *_limits(outcomes, spread, spread.quantile))


def paired_difference(first: Float[np.ndarray, "s e"], second: Float[np.ndarray, "r e"]) -> Interval:
    """Mean of the first minus mean of the second, both on the same start states, with a 95% interval.

    Newcombe's square-and-add of the two score intervals (1998, Stat. Med. 17:2635, method 10), with the correlation that the
    shared start states bring. With one seed of each it is his interval for paired proportions; with more, variances and degrees
    of freedom are those of `mean_over_seeds`, the trainings of the two taken as independent; where either has one seed only, of
    whose spread nothing is known, it says nothing of other trainings of that one. Chosen before Tango's because it carries over
    to several seeds and to scores in closed form.

    Raises:
        ConfigError: as `mean_over_seeds`, or for different numbers of start states.
    """
    for outcomes in (first, second):
        _check(outcomes)
    episodes = first.shape[1]
    if second.shape[1] != episodes:
        raise ConfigError(f"{episodes} and {second.shape[1]} episodes cannot be paired: play both on the same start states")
    spreads, quantile = (_spread(first), _spread(second)), _spread(first, second).quantile
    mean, other = float(first.mean()), float(second.mean())
    (low, high), (other_low, other_high) = (_limits(x, s, quantile) for x, s in zip((first, second), spreads, strict=True))
    covariance = float(np.mean((first.mean(0) - mean) * (second.mean(0) - other))) / episodes
    if covariance > 0:
        covariance = max(0.0, covariance - 0.5 / episodes**2)  # Newcombe's continuity correction
    scale = math.sqrt(spreads[0].variance * spreads[1].variance)
    correlation = min(1.0, max(-1.0, covariance / scale)) if scale else 0.0

    def both(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b))

    difference = mean - other
    return Interval(
        difference, difference - both(mean - low, other_high - other), difference + both(high - mean, other - other_low)
    )


def _check(outcomes: Float[np.ndarray, "s e"]) -> None:
    seeds, episodes = outcomes.shape
    if outcomes.size == 0 or (seeds > 1 and episodes < 2):
        raise ConfigError(f"{seeds} seeds on {episodes} start states say nothing of others: play two or more")
    if not ((outcomes >= 0) & (outcomes <= 1)).all():
        raise ConfigError(
            f"outcomes lie in [0, 1], found {outcomes.min()} to {outcomes.max()}: divide scores by their largest value"
        )


@dataclass(frozen=True)
class _Spread:
    """How far a mean may be from the truth.

    Attributes:
        total: its variance by the two-way model, which by chance may come out too small, or negative.
        alone: its variance if all episodes were independent.
        quantile: of the t distribution that goes with `total`.
    """

    total: float
    alone: float
    quantile: float

    @property
    def variance(self) -> float:
        return max(self.total, self.alone)


def _spread(*parts: Float[np.ndarray, "_ e"]) -> _Spread:
    """Of the mean of one policy's outcomes, or of the difference of two.

    Start states and seeds cross, so the sum of what start states and what seeds show counts the rest twice: it is taken off.
    With one seed of either there is no such model: the episodes count as independent.
    """
    by_episode = parts[0].mean(0) - (parts[1].mean(0) if len(parts) == 2 else 0.0)
    episodes, seeds = len(by_episode), min(len(x) for x in parts)
    alone = sum(float(x.var()) / x.size for x in parts)
    if seeds == 1:
        return _Spread(alone, alone, Z95)
    if not _varies(alone, parts):  # of a sum of rounding errors, no degrees of freedom
        return _Spread(0.0, 0.0, float(stdtrit(seeds - 1.0, 0.975)))
    terms = [(float(by_episode.var(ddof=1)) / episodes, episodes - 1)]
    for x in parts:
        rest, cells = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean(), (len(x) - 1) * (episodes - 1)
        terms += [(float(x.mean(1).var(ddof=1)) / len(x), len(x) - 1), (-float((rest**2).sum()) / cells / x.size, cells)]
    total, scatter = sum(term for term, _ in terms), sum(term**2 / n for term, n in terms)
    freedom = total**2 / scatter if scatter > 0 else 0.0
    return _Spread(total, alone, float(stdtrit(max(freedom, seeds - 1.0), 0.975)))


def _limits(outcomes: Float[np.ndarray, "s e"], spread: _Spread, quantile: float) -> tuple[float, float]:
    """Wilson's limits, at as many independent episodes as would give this spread."""
    mean, widened = float(outcomes.mean()), (quantile / Z95) ** 2
    variance = max(spread.total * widened, spread.alone)
    episodes = outcomes.size / widened
    if _varies(spread.alone, (outcomes,)):
        episodes = min(mean * (1 - mean) / variance, outcomes.size)
    return wilson_interval(mean * episodes, episodes)


def _varies(alone: float, parts: Sequence[Float[np.ndarray, "_ e"]]) -> bool:
    """Whether a variance is more than the rounding of equal scores; zeros and ones of these means would have the largest."""
    return alone > 1e-12 * sum(float(x.mean() * (1 - x.mean())) / x.size for x in parts)
