"""The statistics against independent statements: the definition by brute force, scipy, a published example, simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dtkd_edge.benchmarks.statistics import (
    halves_disagree,
    outliers,
    percentile,
    percentile_interval,
    percentile_ratio,
    queries_for,
    ratio_interval,
    share_difference,
    wilson,
)

values = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=60)


@given(values, st.integers(1, 100))
def test_percentile_is_the_smallest_value_that_covers_the_share(seen: list[float], percent: int) -> None:
    found = percentile(seen, percent)
    assert found in seen

    def covered(limit: float) -> bool:
        return sum(v <= limit for v in seen) * 100 >= percent * len(seen)

    assert covered(found)
    assert not any(covered(v) for v in seen if v < found)


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no value"):
        percentile([], 50)


def test_known_percentiles() -> None:
    hundred = np.arange(1, 101)[::-1]
    assert [percentile(hundred, p) for p in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert percentile([3.0], 99) == 3.0


@given(st.integers(1, 400), st.sampled_from([50.0, 90.0, 99.0]))
def test_interval_ranks_agree_with_the_binomial_distribution(count: int, percent: float) -> None:
    low, high = percentile_interval(np.arange(1, count + 1), percent)  # the values are their own ranks
    law = stats.binom(count, percent / 100)
    if low is None:
        assert law.cdf(0) > 0.025
    else:
        assert law.cdf(low - 1) <= 0.025 + 1e-9 < law.cdf(low) + 2e-9
    if high is None:
        assert law.sf(count - 1) > 0.025
    else:
        assert law.sf(high - 1) <= 0.025 + 1e-9
        assert law.sf(high - 2) > 0.025 - 1e-9


def test_interval_holds_the_true_percentile_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    truth = stats.gamma(2).ppf(0.9)
    inside = 0
    for _ in range(600):
        low, high = percentile_interval(rng.gamma(2, size=200), 90)
        assert low is not None and high is not None
        inside += low <= truth <= high
    assert 0.93 <= inside / 600 <= 0.99


def test_too_few_queries_give_no_upper_bound_for_p99() -> None:
    assert percentile_interval(np.arange(200), 99)[1] is None  # 0.99**200 = 0.13
    assert percentile_interval(np.arange(400), 99)[1] is not None  # 0.99**400 = 0.018


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_agrees_with_scipy(successes: int, trials: int) -> None:
    successes = min(successes, trials)
    expected = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_difference_of_shares_is_newcombes_example() -> None:
    # Newcombe (1998), table II, row (a): 56/70 − 48/80, method 10: 0.0524 to 0.3339
    difference, low, high = share_difference((48, 80), (56, 70))
    assert difference == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_ratio_interval_finds_a_change_and_leaves_noise_alone() -> None:
    rng = np.random.default_rng(2)
    false_alarms = 0
    for seed in range(60):
        old, new = rng.lognormal(0, 0.03, 24), rng.lognormal(0, 0.03, 24)
        _, low, high = ratio_interval(old, new, seed=seed, draws=800)
        false_alarms += not low <= 1 <= high
    assert false_alarms <= 8
    ratio, low, high = ratio_interval(rng.lognormal(0, 0.03, 24), 1.2 * rng.lognormal(0, 0.03, 24))
    assert 1.1 < low < ratio < high < 1.3


def test_percentile_ratio() -> None:
    ratio, low, high = percentile_ratio((10, 8, 12.5), (20, 16, 25))  # both with a factor of 1.25 either way
    assert (ratio, low, high) == pytest.approx((2, 2 / 1.25**2**0.5, 2 * 1.25**2**0.5))
    assert percentile_ratio((10, 8, None), (20, 16, 25)) == (2, None, pytest.approx(high))
    assert percentile_ratio((10, 8, 12.5), (20, 16, None)) == (2, pytest.approx(low), None)
    assert percentile_ratio((10, 10, 10), (20, 20, 20)) == (2, 2, 2)


@pytest.mark.parametrize(("percent", "queries"), [(90, 200), (99, 600)])
def test_percentile_ratio_leaves_noise_alone(percent: int, queries: int) -> None:
    """Two runs of one skewed distribution are called different no more often than 95 % intervals allow."""
    rng = np.random.default_rng(3)
    false_alarms = 0
    for _ in range(300):
        old, new = (1 + rng.gamma(2, size=queries) for _ in range(2))
        sides = [(percentile(v, percent), *percentile_interval(v, percent)) for v in (old, new)]
        _, low, high = percentile_ratio(*sides)
        assert low is not None and high is not None
        false_alarms += not low <= 1 <= high
    assert false_alarms / 300 <= 0.08


def test_halves_and_outliers() -> None:
    assert halves_disagree([1.0] * 10) == 0
    assert halves_disagree([1.0] * 10 + [1.1] * 10) == pytest.approx(0.1)
    assert halves_disagree([1.1] * 10 + [1.0] * 10) == pytest.approx(0.1)
    assert halves_disagree([1.0]) == 0
    assert outliers([1.0, 1.1, 0.9, 1.05] * 20 + [50.0, 60.0]) == 2
    assert math.isclose(percentile([1.0] * 99 + [50.0], 100), 50.0)  # counted, not dropped


@pytest.mark.parametrize("percent", [50.0, 90.0, 99.0])
def test_so_many_queries_give_a_percentile_its_upper_bound(percent: float) -> None:
    count = queries_for(percent)
    assert percentile_interval(range(count), percent)[1] is not None
    assert percentile_interval(range(count - 1), percent)[1] is None
    assert queries_for(None) == 1
