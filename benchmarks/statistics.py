"""The statistics of a bench: percentiles, intervals and comparisons, each with its definition. No torch.

Latencies are skewed and their neighbours in time resemble each other, so nothing here assumes a normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054  # the standard normal's 97.5 % quantile


def percentile(values: ArrayLike, percent: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `percent` % of the values do not exceed.

    It is always a latency that was seen, never an interpolation between two; MLPerf's load generator picks by rank too.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not len(ordered):
        raise ValueError("no value")
    return float(ordered[_rank(len(ordered), percent) - 1])


def _rank(count: int, percent: float) -> int:
    return min(max(math.ceil(percent / 100 * count - 1e-9), 1), count)


def percentile_interval(values: ArrayLike, percent: float, confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Distribution-free interval of a percentile from order statistics; None where there are too few values for a bound.

    The number of values below the true percentile is binomial(n, percent/100); the ranks that hold `confidence` of it are the
    interval (David & Nagaraja, Order Statistics, 7.1). MLPerf's early stopping asks the same question: are these queries
    enough to claim the percentile?
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    below = _binomial_cdf(count, percent / 100)
    tail = (1 - confidence) / 2
    # lower: the largest rank r with P(X < r) <= tail; upper: the smallest rank r with P(X >= r) <= tail
    lower = int(np.searchsorted(below, tail, side="right"))
    upper = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    return (float(ordered[lower - 1]) if lower >= 1 else None, float(ordered[upper - 1]) if upper <= count else None)


def queries_for(percent: float | None, confidence: float = 0.95) -> int:
    """How many values `percentile_interval` needs for an upper bound: the least n with (percent/100)ⁿ ≤ (1 − confidence)/2."""
    if not percent:
        return 1
    return math.ceil(math.log((1 - confidence) / 2) / math.log(percent / 100))


def _binomial_cdf(count: int, share: float) -> NDArray[np.float64]:
    """P(X <= k) for k = 0 … count."""
    k = np.arange(count + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    log_pmf = log_factorial[count] - log_factorial - log_factorial[::-1] + k * math.log(share) + (count - k) * math.log1p(-share)
    return np.minimum(np.cumsum(np.exp(log_pmf)), 1.0)


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson, 1927): stays in [0, 1] and holds for few trials and shares near 0 or 1."""
    if trials < 1:
        raise ValueError("no trial")
    share, denominator = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def halves_disagree(values: Sequence[float]) -> float:
    """How far the medians of a run's first and second half lie apart, as a share of the smaller. Order is time order."""
    middle = len(values) // 2
    if middle < 1:
        return 0.0
    first, second = float(np.median(values[:middle])), float(np.median(values[middle:]))
    return abs(first - second) / max(min(first, second), 1e-12)


def outliers(values: ArrayLike) -> int:
    """Values above the third quartile plus three interquartile ranges (Tukey's far outliers). They are counted, never dropped."""
    array = np.asarray(values, dtype=np.float64)
    q1, q3 = np.percentile(array, [25, 75])
    return int((array > q3 + 3 * (q3 - q1)).sum())


def ratio_interval(old: Sequence[float], new: Sequence[float], *, draws: int = 4000, seed: int = 0) -> tuple[float, float, float]:
    """(ratio, low, high) of median(new) / median(old) with a 95 % bootstrap interval.

    The values are medians of blocks of consecutive queries, not single latencies: resampling blocks keeps what neighbours in
    time share (Künsch, 1989), which resampling queries would not, and so does not call noise significant.
    """
    a, b = np.asarray(old, dtype=np.float64), np.asarray(new, dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn_a = np.median(rng.choice(a, (draws, len(a))), axis=1)
    drawn_b = np.median(rng.choice(b, (draws, len(b))), axis=1)
    low, high = np.percentile(drawn_b / drawn_a, [2.5, 97.5])
    return float(np.median(b) / np.median(a)), float(low), float(high)


def percentile_ratio(
    old: tuple[float, float | None, float | None], new: tuple[float, float | None, float | None]
) -> tuple[float, float | None, float | None]:
    """(ratio, low, high) of new / old, each a percentile with its 95 % interval from `percentile_interval`; a bound is None where
    one that it needs is.

    The logarithms' intervals joined as Newcombe joins those of shares (below); for any two estimates: Zou & Donner (2008). They
    take queries for independent, so where neighbours in time resemble each other the true interval is wider.
    """
    (a, low_a, high_a), (b, low_b, high_b) = old, new
    low = None if low_b is None or high_a is None else b / a * math.exp(-math.hypot(math.log(b / low_b), math.log(high_a / a)))
    high = None if high_b is None or low_a is None else b / a * math.exp(math.hypot(math.log(high_b / b), math.log(a / low_a)))
    return b / a, low, high


def share_difference(old: tuple[int, int], new: tuple[int, int]) -> tuple[float, float, float]:
    """(difference, low, high) of two shares given as (successes, trials), new − old, with Newcombe's 95 % interval.

    Newcombe (1998), method 10: the two Wilson intervals joined. The clips count as two independent samples; where both rows
    come from the same clips the true interval is narrower.
    """
    p1, p2 = new[0] / new[1], old[0] / old[1]
    (l1, u1), (l2, u2) = wilson(*new), wilson(*old)
    difference = p1 - p2
    return difference, difference - math.hypot(p1 - l1, u2 - p2), difference + math.hypot(u1 - p1, p2 - l2)
