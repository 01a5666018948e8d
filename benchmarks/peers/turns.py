"""What the side-by-side scripts share: their options, the run's videos and artefacts, taking turns, the printed comparison."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks.plan import find_data
from dtkd_edge.benchmarks.report import OTHERS, number
from dtkd_edge.benchmarks.scenarios import Budget, Subject, run_closed
from dtkd_edge.benchmarks.statistics import ratio_interval
from dtkd_edge.benchmarks.telemetry.cpu import CpuSource
from dtkd_edge.runs import run_artifacts

Query = Callable[[int], object]


def options(doc: str | None, argv: Sequence[str] | None, *, videos: bool = False, compiled: bool = False) -> argparse.Namespace:
    """RUN [VIDEO …] [--threads 1] [--seconds 5] [--queries 100], and --compile where torch.compile can stand beside eager."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    if videos:
        parser.add_argument("videos", type=Path, nargs="*", help="default: validation clips of the run")
    if compiled:
        parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="of each runtime")
    parser.add_argument("--seconds", type=float, default=5.0, help="least time that each is measured")
    parser.add_argument("--queries", type=int, default=100)
    return parser.parse_args(argv)


def clip_artifacts(run: Path) -> list[Artifact]:
    found = [a for a in map(Artifact.open, run_artifacts(run)) if a.manifest.mode == "clip"]
    if not found:
        raise SystemExit(f"{run}: nothing exported; run: dtkd-edge export {run}")
    return found


def find_videos(run: Path, given: Sequence[Path], most: int = 16) -> list[Path]:
    """The videos named, or the first of the run's validation clips."""
    if given:
        return list(given)
    data, why = find_data(clip_artifacts(run)[0].folder, None, [])
    if data is None:
        raise SystemExit(f"{run}: {why}; name videos after the run")
    return list(dict.fromkeys(Path(data.clips[i].path) for i in range(min(most, len(data.clips)))))


@contextmanager
def watched() -> Iterator[None]:
    """Say so where other processes took a part of the CPUs meanwhile (child processes of this one count as others)."""
    cpu = CpuSource()
    cpu.read()
    yield
    others, whole = cpu.read().others or (0.0, 0.0)
    if others > OTHERS * whole:
        print(f"other processes took {100 * others / whole:.0f} % of the CPUs meanwhile: believe no time, and ratios with care")


def compare(queries: dict[str, Query], asked: argparse.Namespace) -> None:
    """Measure all, taking turns, and print a line for each; the last column is how many times as long as the first it takes."""
    subjects = [Subject(name, query) for name, query in queries.items()]
    with watched():
        timings = run_closed(subjects, Budget(queries=asked.queries, seconds=asked.seconds, warmup=min(1.0, asked.seconds)))
    latencies = [timing.latency(90) for timing in timings]
    width = max(map(len, queries))
    for name, timing, latency in zip(queries, timings, latencies, strict=True):
        ratio, low, high = ratio_interval(latencies[0].blocks, latency.blocks)
        half = f"{number(latency.quantiles[25])}–{number(latency.quantiles[75])} for the middle half, n={latency.n}"
        noisy = f"  halves differ by {100 * timing.noisy:.0f} %" if timing.noisy > 0.05 else ""
        print(f"{name:{width}s}  median {number(latency.p50):>7s} ms  ({half})  {ratio:.2f} × ({low:.2f}–{high:.2f}){noisy}")
