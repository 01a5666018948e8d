"""What a run's precisions are worth on this machine, all of them measured in turns in one process.

    python -m dtkd_edge.export.measure RUN [--target openvino] [--precision fp32,bf16,int8] [--mode clip,stream] [--fresh]

What is not exported yet, or all with `--fresh`, is exported by `dtkd-edge export` in a process of its own: its seconds and
its peak memory. Then every artefact takes a short turn per round, in an order that rotates; a ratio is taken within a round,
so that a busy machine slows both sides of it, and printed as median (5th to 95th percentile). Accuracy is top-1 on the
validation clips of the run, paired with the first precision. A stream artefact takes one frame a turn; its ratio is to its
own precision for a whole clip.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.artifact import MANIFEST, AccuracyPart, Artifact
from dtkd_edge.console import say, write_result
from dtkd_edge.deploy.backends import Backend, open_backend
from dtkd_edge.errors import UsageError
from dtkd_edge.exits import reported
from dtkd_edge.export import targets, verify
from dtkd_edge.export.accuracy import open_gate
from dtkd_edge.export.targets import Request
from dtkd_edge.recipe_reader import load_run

CALLS = 3  # timed calls of one turn, after one that is not


@dataclass
class Row:
    """One artefact. ms: median of the rounds' medians; ratio: the base's latency / its own (stream: its own / its clip's)."""

    artifact: str
    effective_precision: str
    ms: float
    ms_spread: tuple[float, float]
    ratio: float
    ratio_spread: tuple[float, float]
    ratio_to: str
    accuracy: AccuracyPart | None
    export_seconds: float | None
    export_peak_mb: float | None


def export_alone(run: Path, request: Request, overrides: list[str]) -> tuple[float, float]:
    """`dtkd-edge export` as a user types it → wall seconds and peak resident megabytes of that process."""
    arguments = [sys.executable, "-m", "dtkd_edge", "export", str(run), "--target", request.target.name]
    arguments += ["--precision", request.precision, "--mode", request.mode, *(part for o in overrides for part in ("--set", o))]
    start = time.perf_counter()
    _, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.executable, arguments), 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 5):  # 5: made, but refused by its verification; how fast it is may still be asked
        raise SystemExit(code)
    return time.perf_counter() - start, usage.ru_maxrss / 1024  # kilobytes on Linux


def turns(backends: list[Backend], clip: NDArray[np.uint8], rounds: int) -> NDArray[np.float64]:
    """Milliseconds `[rounds, artefacts]`: the median of each one's turn."""
    calls = [verify.one_call(backend) for backend in backends]
    out = np.zeros((rounds, len(calls)))
    for number in range(-1, rounds):  # the first warms up
        for place in range(len(calls)):
            which = (place + number) % len(calls)
            calls[which](clip)
            taken = []
            for _ in range(CALLS):
                start = time.perf_counter()
                calls[which](clip)
                taken.append(1e3 * (time.perf_counter() - start))
            out[max(number, 0), which] = np.median(taken)
    return out


def spread(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, [5, 95])
    return float(low), float(high)


def measure(run: Path, requests: list[Request], *, rounds: int, threads: int, fresh: bool, overrides: list[str]) -> list[Row]:
    """The first request is what the others are compared with. Raises what `dtkd-edge export` raises, as its exit code."""
    cost: dict[str, tuple[float, float]] = {}
    for request in requests:
        if fresh or not (run / "export" / request.folder / MANIFEST).is_file():
            cost[request.folder] = export_alone(run, request, overrides)
    artifacts = [Artifact.open(run / "export" / request.folder) for request in requests]
    first = artifacts[0].manifest
    with ExitStack() as stack:
        backends = [stack.enter_context(open_backend(a, device="cpu", threads=threads)) for a in artifacts]
        data = load_run(run, overrides).data
        gate = open_gate(data, first.preprocess, first.labels, 100.0, backends[0])
        ms = turns(backends, gate.frames[:1], rounds)
        names = [request.folder for request in requests]
        rows = []
        for i, (request, backend) in enumerate(zip(requests, backends, strict=True)):
            base, ratios = names[0], ms[:, 0] / ms[:, i]
            clip = request.folder.replace("-stream", "")
            if request.mode == "stream" and clip in names:
                base, ratios = clip, ms[:, i] / ms[:, names.index(clip)]
            rows.append(
                Row(
                    names[i], backend.effective_precision, float(np.median(ms[:, i])), spread(ms[:, i]),
                    float(np.median(ratios)), spread(ratios), base, gate.measure(backend) if i else None,
                    *cost.get(names[i], (None, None)),
                )
            )  # fmt: skip
    return rows


def line(row: Row) -> str:
    low, high = row.ms_spread
    words = [f"{row.artifact:24s} {row.effective_precision:10s} {row.ms:8.2f} ms ({low:.2f}–{high:.2f})"]
    if row.ratio_to != row.artifact:
        sign = "of the time of" if "stream" in row.artifact else "× the speed of"
        words.append(f"{row.ratio:.3f} ({row.ratio_spread[0]:.3f}–{row.ratio_spread[1]:.3f}) {sign} {row.ratio_to}")
    if row.accuracy:
        part = row.accuracy
        words.append(
            f"top-1 {part.top1_reference:.1%} → {part.top1:.1%} (drop {part.drop:.1f} ± {part.stderr:.1f}, n {part.clips})"
        )
    if row.export_seconds is not None and row.export_peak_mb is not None:
        words.append(f"exported in {row.export_seconds:.0f} s with {row.export_peak_mb:.0f} MB")
    return "; ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--target", default="openvino")
    parser.add_argument("--precision", default="fp32,bf16,int8", help="comma separated; the first is the base")
    parser.add_argument("--mode", default="clip", help="clip, or clip,stream (TSM that is causal, X3D)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--fresh", action="store_true", help="export all anew, and say what that costs")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="data.KEY=VALUE")
    parser.add_argument("--json", metavar="FILE", help="write the rows there; - for stdout")
    options = parser.parse_args()
    modes, precisions = targets.names([options.mode]), targets.names([options.precision])
    requests = [targets.request(options.target, precision, mode) for mode in modes for precision in precisions]
    if any(request.precision == targets.AUTO for request in requests) or not requests[0].target.auto:
        raise UsageError(f"{options.target}, {options.precision}: cannot be timed here", "see --help")
    rows = measure(
        options.run, requests, rounds=options.rounds, threads=options.threads, fresh=options.fresh, overrides=options.overrides
    )
    for row in rows:
        say(line(row))
    say(f"{options.rounds} rounds of {CALLS} calls, {options.threads} thread, load average {os.getloadavg()[0]:.1f}")
    if options.json:
        plain = [{**asdict(row), "accuracy": row.accuracy.model_dump() if row.accuracy else None} for row in rows]
        write_result(plain, options.json)


if __name__ == "__main__":
    reported(main)
