"""How queries are issued and timed, on real sleeps and on a clock that the test turns."""

from __future__ import annotations

import time
from typing import Any

import pytest

from dtkd_edge.benchmarks.scenarios import Budget, Subject, find_scenarios, run_closed, run_live, warm_up
from dtkd_edge.errors import UsageError


class Clock:
    """A clock that only moves when a query or a pause takes time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def takes(clock: Clock, seconds: float, log: list[str] | None = None, name: str = "") -> Subject:
    def query(i: int) -> None:
        clock.now += seconds
        if log is not None:
            log.append(name)

    return Subject(name, query)


def test_enough_means_both_queries_and_seconds() -> None:
    clock = Clock()
    quick, slow = takes(clock, 0.001, name="quick"), takes(clock, 0.1, name="slow")
    fast, heavy = run_closed([quick, slow], Budget(queries=50, seconds=2, warmup=0), clock=clock, sleep=clock.sleep)
    assert fast.seconds >= 2 and len(fast.times) >= 50
    assert heavy.seconds >= 2 and len(heavy.times) >= 50
    assert fast.throughput == pytest.approx(1000) and heavy.throughput == pytest.approx(10)
    assert not fast.short and not heavy.short


def test_the_limit_ends_a_run_and_is_noted() -> None:
    clock = Clock()
    (timing,) = run_closed(
        [takes(clock, 1.0)], Budget(queries=200, seconds=3, warmup=0, limit=10), clock=clock, sleep=clock.sleep
    )
    assert timing.short and len(timing.times) == 10


def test_a_percentile_gets_as_many_queries_as_its_interval_needs() -> None:
    clock = Clock()
    words: dict[str, Any] = {"clock": clock, "sleep": clock.sleep}
    (tail,) = run_closed([takes(clock, 0.1)], Budget(queries=20, seconds=2, warmup=0), percent=99, **words)
    assert len(tail.times) >= 368 and tail.latency(99).interval[1] is not None and not tail.short
    (cut,) = run_closed([takes(clock, 0.1)], Budget(queries=20, seconds=2, warmup=0, limit=5), percent=99, **words)
    assert cut.short and cut.latency(99).interval[1] is None  # the limit is one


def test_subjects_take_turns_and_the_order_alternates() -> None:
    clock, log = Clock(), []
    subjects = [takes(clock, 0.01, log, name) for name in "ABC"]
    run_closed(subjects, Budget(queries=24, seconds=0.24, warmup=0), clock=clock, sleep=clock.sleep)
    turns = [name for i, name in enumerate(log) if i == 0 or log[i - 1] != name][3:]  # the warm-ups come first
    assert "".join(turns).startswith("BACBABC") or "".join(turns).startswith("ABCBABC"), turns
    assert {turns.count(name) for name in "AC"} <= {turns.count("A"), turns.count("C")}


def test_a_drift_meets_all_subjects_alike() -> None:
    clock = Clock()

    def slowing(i: int) -> None:
        clock.now += 0.001 * (1 + clock.now - 100)

    a, b = run_closed(
        [Subject("a", slowing), Subject("b", slowing)], Budget(queries=100, seconds=1, warmup=0), clock=clock, sleep=clock.sleep
    )
    assert a.latency(50).p50 == pytest.approx(b.latency(50).p50, rel=0.1)
    assert a.noisy > 0.05  # and is called noisy


def test_blocks_share_out_all_times() -> None:
    clock = Clock()
    (timing,) = run_closed([takes(clock, 0.01)], Budget(queries=60, seconds=0.3, warmup=0), clock=clock, sleep=clock.sleep)
    latency = timing.latency(90)
    assert timing.blocks[0] == 0 and len(latency.blocks) >= 10
    assert latency.n == len(timing.times)
    assert latency.p50 == latency.p90 == latency.max == pytest.approx(10)
    assert len(latency.quantiles) == 101


def test_warm_up_is_by_time_and_at_least_three_queries() -> None:
    clock = Clock()
    counted: list[str] = []
    warm_up(takes(clock, 0.01, counted), 0.5, clock)
    assert 49 <= len(counted) <= 52
    counted.clear()
    warm_up(takes(clock, 9.0, counted), 0.5, clock)
    assert len(counted) == 3


def test_a_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(0, 10_000_000, 3600))
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    (timing,) = run_closed([Subject("real", lambda i: time.sleep(0.002))], Budget(queries=20, seconds=0.05, warmup=0.01))
    assert 2.0 <= timing.latency(50).p50 < 50


def test_live_takes_the_newest_frame_and_counts_the_rest() -> None:
    clock = Clock()
    timing = run_live(takes(clock, 0.1), Budget(seconds=10, warmup=0), 30, clock=clock, sleep=clock.sleep)
    live = timing.live
    assert live is not None
    assert live.dropped == pytest.approx(200, abs=6)  # a model at 10/s looks at every third frame of 30/s
    assert live.labels_per_second == pytest.approx(10, abs=0.3)
    assert 100 <= live.age_p50_ms <= 100 + 1000 / 30 + 1

    quick = run_live(takes(clock, 0.005), Budget(seconds=10, warmup=0), 30, clock=clock, sleep=clock.sleep).live
    assert quick is not None and quick.dropped == 0
    assert quick.age_p50_ms == pytest.approx(5, abs=0.1)


def test_names_of_scenarios() -> None:
    assert [s.name for s in find_scenarios([])] == ["single-stream", "offline"]
    assert [s.name for s in find_scenarios(["live,offline", "offline"])] == ["live", "offline"]
    with pytest.raises(UsageError, match="no scenario of that name"):
        find_scenarios(["server"])
