"""How queries arrive, and how they are timed. Adding a scenario is one line in SCENARIOS (plus a loop, if it arrives anew).

Names and percentiles follow MLPerf Inference (Reddi et al., 2020); the results are no MLPerf results. Only a monotonic clock is
read (time.perf_counter), so a clock that is set while a bench runs changes nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dtkd_edge.benchmarks.record import Latency, Live
from dtkd_edge.benchmarks.statistics import halves_disagree, outliers, percentile, percentile_interval, queries_for
from dtkd_edge.errors import UsageError

BLOCKS = 12  # turns that each artefact takes at least
SETTLE_S = 0.02


@dataclass(frozen=True)
class Scenario:
    """clips: per query (0: the artefact's batch, or as many as keep a runtime busy that computes several of them at once).
    percent: the percentile that the scenario is judged by. hint: what the runtime is set up for, where it makes a difference."""

    name: str
    clips: int
    percent: float | None
    about: str
    hint: str = "latency"

    @property
    def metric(self) -> str:
        return "throughput" if self.percent is None else f"p{self.percent:g}"


SCENARIOS = {
    s.name: s
    for s in (
        Scenario("single-stream", 1, 90, "one clip per query, the next query when the last has its result"),
        Scenario("multi-stream", 8, 99, "eight clips per query, the next query when the last has its results", "throughput"),
        Scenario("offline", 0, None, "all clips are there from the start; clips per second", "throughput"),
        Scenario("live", 1, 90, "a camera delivers frames at its rate; the newest is looked at, the rest are dropped"),
    )
}
DEFAULT = ("single-stream", "offline")


def find_scenarios(names: Sequence[str]) -> list[Scenario]:
    """The named scenarios (comma-separated names too), or the default ones."""
    wanted = [part for name in names for part in name.split(",") if part] or list(DEFAULT)
    for name in wanted:
        if name not in SCENARIOS:
            raise UsageError(f"--scenario {name}: no scenario of that name", f"choose from: {', '.join(SCENARIOS)}")
    return [SCENARIOS[name] for name in dict.fromkeys(wanted)]


@dataclass(frozen=True)
class Budget:
    """When a run is long enough: at least `queries` and `seconds`, and as many queries as the scenario's percentile needs for an
    interval with two ends; `limit` seconds end it anyway (too few queries are noted). warmup: seconds."""

    queries: int = 200
    seconds: float = 10.0
    warmup: float = 1.0
    limit: float = 60.0


@dataclass
class Subject:
    """Something to be timed: `query(i)` does query number i and returns when its results are on the host."""

    label: str
    query: Callable[[int], object]
    clips: int = 1  # per query


@dataclass
class Timing:
    """What was seen of one subject, in time order. times: seconds per query; blocks: its values' boundaries."""

    clips: int
    times: list[float] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    warmup: float = 0.0
    live: Live | None = None
    short: bool = False

    @property
    def seconds(self) -> float:
        return sum(self.times)

    @property
    def throughput(self) -> float:
        """Clips per second."""
        return len(self.times) * self.clips / self.seconds

    @property
    def noisy(self) -> float:
        return halves_disagree(self.times)

    def latency(self, percent: float | None) -> Latency:
        """Milliseconds; `percent` is the percentile that gets an interval."""
        ms = np.asarray(self.times) * 1e3
        edges = [*self.blocks, len(ms)]
        blocks = [float(np.median(ms[a:b])) for a, b in itertools.pairwise(edges) if b > a]
        return Latency(
            n=len(ms),
            mean=_round(ms.mean()),
            p50=_round(percentile(ms, 50)),
            p90=_round(percentile(ms, 90)),
            p99=_round(percentile(ms, 99)),
            max=_round(ms.max()),
            min=_round(ms.min()),
            interval=tuple(None if v is None else _round(v) for v in percentile_interval(ms, percent or 50)),
            outliers=outliers(ms),
            quantiles=[_round(v) for v in np.percentile(ms, np.arange(101))],
            blocks=[_round(v) for v in blocks],
        )


def warm_up(subject: Subject, seconds: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Run queries until `seconds` have passed (at least three); clocks ramp and caches fill by time, not by count."""
    start, number = clock(), 0
    while number < 3 or clock() - start < seconds:
        subject.query(number)
        number += 1
    return clock() - start


def run_closed(
    subjects: Sequence[Subject],
    budget: Budget,
    *,
    percent: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    on_block: Callable[[Subject, float, bool], None] | None = None,
) -> list[Timing]:
    """Time closed-loop queries of all subjects, taking turns in blocks: A B C, C B A, …, so that drift meets all alike.

    After each switch comes a short pause, for the neighbour's worker threads spin on for a while, and one untimed query, so
    that cold caches are charged to nobody. percent: the percentile that must get its interval. `on_block(subject, seconds,
    before)` is called around each block, outside of the timed region.
    """
    least = max(budget.queries, queries_for(percent))
    timings = [Timing(s.clips) for s in subjects]
    for subject, timing in zip(subjects, timings, strict=True):
        timing.warmup = warm_up(subject, budget.warmup, clock)
    open_ = set(range(len(subjects)))
    turn = 0
    while open_:
        order = sorted(open_, reverse=bool(turn % 2))
        turn += 1
        for index in order:
            subject, timing = subjects[index], timings[index]
            if len(subjects) > 1:
                sleep(SETTLE_S)
                subject.query(len(timing.times))
            if on_block:
                on_block(subject, timing.seconds, True)
            timing.blocks.append(len(timing.times))
            _block(subject, timing, budget, clock)
            if on_block:
                on_block(subject, timing.seconds, False)
            enough = len(timing.times) >= least and timing.seconds >= budget.seconds
            timing.short = not enough and timing.seconds >= budget.limit
            if enough or timing.short:
                open_.discard(index)
    return timings


def _block(subject: Subject, timing: Timing, budget: Budget, clock: Callable[[], float]) -> None:
    """One turn: a share of the seconds, or of the queries where they take longer; never past the limit."""
    query, times, number = subject.query, timing.times, len(timing.times)
    before = timing.seconds
    length = max(budget.seconds / BLOCKS, 1e-3)
    least = max(budget.queries // BLOCKS, 1)
    done, spent = 0, 0.0
    while True:
        start = clock()
        query(number + done)
        end = clock()
        times.append(end - start)
        done += 1
        spent += end - start
        if (spent >= length and done >= least) or before + spent >= budget.limit:
            return


def run_live(
    subject: Subject,
    budget: Budget,
    fps: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Timing:
    """A camera at `fps`: whenever the model is free it takes the newest frame; frames that came and went are dropped.

    Frame k is captured at k/fps; the age of a label is the time from its frame's capture to its result. The clips themselves are
    there beforehand, so decoding is no part of this.
    """
    timing = Timing(subject.clips, blocks=[0])
    timing.warmup = warm_up(subject, budget.warmup, clock)
    ages, looked, last, seconds = [], 0, -1, max(budget.seconds, 1.0)
    begin = clock()
    while True:
        now = clock() - begin
        newest = int(now * fps + 1e-6)  # a sleep that ends exactly on a frame sees it
        if newest <= last:  # nothing new yet
            sleep(max((last + 1) / fps - now, 0.0))
            continue
        if now >= seconds:
            break
        start = clock()
        subject.query(looked)
        end = clock()
        timing.times.append(end - start)
        ages.append((end - begin - newest / fps) * 1e3)
        looked, last = looked + 1, newest
    total = last + 1
    timing.blocks = list(range(0, looked, max(looked // BLOCKS, 1)))
    timing.live = Live(
        camera_fps=fps,
        frames=total,
        dropped=total - looked,
        age_p50_ms=_round(percentile(ages, 50)),
        age_p90_ms=_round(percentile(ages, 90)),
        labels_per_second=_round(looked / seconds),
    )
    return timing


def _round(value: float) -> float:
    """Microseconds are what the clock is good for."""
    return float(f"{value:.6g}")
