"""The least time that this machine could take for an artefact. No torch.

After Williams, Waterman and Patterson, Roofline (CACM 2009): a query needs 2 · MACs operations and has to move at least its
weights and its input; whichever takes longer at the rates that this machine shows is the limit. Rates are measured in a
process of their own, with as many threads as the artefact gets:

    python -m dtkd_edge.benchmarks.roofline [THREADS]      prints GFLOP/s and GB/s as JSON
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import prod

import numpy as np

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks.record import Roofline
from dtkd_edge.errors import DtkdEdgeError

SIDES = (384, 768, 1536)  # of the matrices: small ones fit between two interruptions, large ones have work for every thread
COPY_MB = 256  # beyond any cache that one artefact has to itself
PIECES = (1, 8)  # that they are copied in, for the same reason as SIDES
SECONDS = 0.5  # per rate and size
WEIGHTS = (".onnx", ".bin", ".engine")


@dataclass(frozen=True)
class Machine:
    """gflops: float32 matrix products. gbs: bytes read and written by a copy, in 10⁹ per second."""

    gflops: float
    gbs: float
    threads: int


def measure_machine(threads: int | None = None) -> Machine:
    """Measure in a fresh process, whose BLAS starts with that many threads. None: as many as this process may use."""
    count = threads or len(os.sched_getaffinity(0))
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(count))
    command = [sys.executable, "-m", "dtkd_edge.benchmarks.roofline", str(count)]
    done = subprocess.run(command, env={**os.environ, **limits}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DtkdEdgeError(f"--roofline: the measuring process failed: {(done.stderr.splitlines() or ['?'])[-1]}")
    return Machine(**json.loads(done.stdout))


def limit(artifact: Artifact, machine: Machine, clips: int, median_ms: float) -> Roofline:
    """Where a query of `clips` clips (stream: frames) with that median stands. MACs are the manifest's."""
    manifest = artifact.manifest
    weights = sum((artifact.folder / name).stat().st_size for name in manifest.files if name.endswith(WEIGHTS))
    frames = clips * prod(manifest.input.shape[1:])
    states = 2 * 4 * sum(prod(state.shape) for state in manifest.input.states)  # read and written, float32
    compute_ms = 2 * manifest.model.macs * clips / machine.gflops / 1e6
    memory_ms = (weights + frames + states) / machine.gbs / 1e6
    least = max(compute_ms, memory_ms)
    return Roofline(
        gflops=round(machine.gflops, 1),
        gbs=round(machine.gbs, 1),
        macs=manifest.model.macs * clips,
        bytes=weights + frames + states,
        limit_ms=least,
        bound="compute" if compute_ms >= memory_ms else "memory",
        share=least / median_ms,
    )


def matmul_gflops(side: int) -> float:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((side, side), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    return 2 * side**3 / _fastest(lambda: np.matmul(a, b, out=out)) / 1e9


def copy_gbs(threads: int, pieces: int) -> float:
    """Every thread copies its part of a piece, one piece after the other; numpy lets go of the interpreter's lock meanwhile."""
    source = np.ones((pieces, threads, COPY_MB * 2**20 // 4 // threads // pieces), np.float32)
    target = np.zeros_like(source)
    turns = itertools.cycle(zip(source, target, strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def work() -> None:
            part, to = next(turns)
            list(pool.map(np.copyto, to, part))

        return 2 * source[0].nbytes / _fastest(work) / 1e9


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of as many repetitions as the time allows: what the machine can do, not what it does on average."""
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else len(os.sched_getaffinity(0))
    print(json.dumps(asdict(Machine(max(map(matmul_gflops, SIDES)), max(copy_gbs(wanted, n) for n in PIECES), wanted))))
