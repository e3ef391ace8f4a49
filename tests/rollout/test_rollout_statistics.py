"""Intervals and percentiles against known values."""

import math

import numpy as np
import pytest
from scipy.stats import beta

from daps_robot.control import plan_keys
from daps_robot.errors import ConfigError
from daps_robot.rollout.statistics import bounded_mean_interval, percentiles, success_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "episodes", "lower", "upper"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - 0.1170, 1.0),
    ],
)
def test_wilson_interval_of_the_literature(successes: int, episodes: int, lower: float, upper: float) -> None:
    assert wilson_interval(successes, episodes) == pytest.approx((lower, upper), abs=5e-5)


def test_wilson_ends_solve_the_score_equation() -> None:
    z = 1.959963984540054
    for p in wilson_interval(37, 50):
        assert abs(37 / 50 - p) == pytest.approx(z * math.sqrt(p * (1 - p) / 50))


def test_wilson_at_the_edges() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(100, 100)[1] == 1.0
    with pytest.raises(ConfigError, match="11 successes in 10"):
        wilson_interval(11, 10)


def test_success_interval_reads_well() -> None:
    found = success_interval(98, 100)
    assert found.rate == 0.98
    assert str(found) == "98/100 = 98.0% (95% 93.0% to 99.4%)"
    assert math.isnan(success_interval(0, 0).rate)


@pytest.mark.parametrize(("ones", "count"), [(9, 10), (20, 20), (0, 7), (45, 50), (1, 1)])
def test_the_interval_of_zeros_and_ones_is_clopper_pearsons(ones: int, count: int) -> None:
    found = bounded_mean_interval([1.0] * ones + [0.0] * (count - ones))
    lower = beta.ppf(0.025, ones, count - ones + 1) if ones else 0.0
    upper = beta.ppf(0.975, ones + 1, count - ones) if ones < count else 1.0
    assert found == pytest.approx((lower, upper), abs=0.01)
    assert (found[0] == 0.0) == (ones == 0) and (found[1] == 1.0) == (ones == count)


def test_the_interval_of_many_spread_values_is_near_the_normal_one() -> None:
    values = np.random.default_rng(0).uniform(0, 1, 1000)
    half = 1.96 * values.std() / math.sqrt(1000)
    assert bounded_mean_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.003)
    assert bounded_mean_interval(values) == bounded_mean_interval(values[::-1])


def test_the_interval_of_equal_values_is_not_a_point() -> None:
    lower, upper = bounded_mean_interval([0.5] * 10)
    assert (lower, upper) == pytest.approx((0.5 * 0.025**0.1, 1 - 0.5 * 0.025**0.1), abs=0.01)
    assert bounded_mean_interval([]) == (0.0, 1.0)
    for value in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="from 0 to 1"):
            bounded_mean_interval([0.5, value])


@pytest.mark.parametrize("episodes", [5, 20])
@pytest.mark.parametrize("kind", ["rare failures", "a heap at 1", "skewed"])
def test_the_interval_covers_the_mean(kind: str, episodes: int) -> None:
    """In 95% of experiments or more, less three standard errors of 200; Student's, of rare failures, in 30 to 60%."""
    rng = np.random.default_rng(1)

    def draw(count: int) -> np.ndarray:
        if kind == "skewed":
            return rng.beta(5, 1, count)
        if kind == "a heap at 1":
            return np.where(rng.random(count) < 0.6, 1.0, rng.beta(2, 2, count))
        return np.where(rng.random(count) < 0.95, rng.uniform(0.9, 1.0, count), 0.3 * rng.random(count))

    truth = float(draw(1_000_000).mean())
    intervals = [bounded_mean_interval(draw(episodes)) for _ in range(200)]
    covered = np.mean([lower <= truth <= upper for lower, upper in intervals])
    assert covered >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 200)


def test_percentiles_are_observed_values() -> None:
    assert percentiles([4.0, 1.0, 3.0, 2.0], (50, 99)) == {"p50": 2.0, "p99": 4.0}
    assert percentiles(np.arange(1, 201.0), (99,)) == {"p99": 198.0}
    with pytest.raises(ConfigError, match="no values"):
        percentiles([])


def test_the_interval_of_many_scores_takes_little_memory():
    """They are drawn in blocks: all 20 000 × 5 000 numbers at once would take 800 MB."""
    import tracemalloc

    values = np.random.default_rng(0).random(5000)
    tracemalloc.start()
    low, high = bounded_mean_interval(values)
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()
    half = 1.96 * values.std(ddof=1) / 5000**0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.001)


def test_plan_keys_are_distinct_and_repeatable() -> None:
    episode, plan = (part.ravel() for part in np.meshgrid(np.arange(100), np.arange(50)))
    keys = plan_keys(episode, plan)
    assert keys.dtype == np.int64 and (keys >= 0).all()
    assert len(set(keys.tolist())) == 5000
    # SplitMix64 from seed 0 gives this first number (the reference implementation's), of which the lowest bit goes.
    assert plan_keys(np.array([0]), np.array([0]))[0] == 0xE220A8397B1DCDAF >> 1
    assert (plan_keys(episode[::-1], plan[::-1]) == keys[::-1]).all()
