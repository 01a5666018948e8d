"""What the harness itself costs: `python -m dtkd_edge.benchmarks.peers.overhead ARTIFACT [--pairs 12] [--seconds 1]`.

Our single-stream median against a bare loop around the same open backend, and, for an OpenVINO artefact, against a bare loop
around OpenVINO's own request. They take turns in pairs, so that a noisy machine meets all alike; the ratio is the pairs' median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks.peers.turns import watched
from dtkd_edge.benchmarks.queries import make_inputs, make_query
from dtkd_edge.benchmarks.scenarios import SCENARIOS, Budget, Subject, run_closed
from dtkd_edge.deploy.backends import Backend, open_backend
from dtkd_edge.exits import reported


def ours(backend: Backend, seconds: float) -> float:
    """Median seconds of a single-stream run, as `bench` does it."""
    query, clips = make_query(backend, SCENARIOS["single-stream"], (), make_inputs(backend.artifact.manifest.preprocess))
    (timing,) = run_closed([Subject("ours", query, clips)], Budget(queries=20, seconds=seconds, warmup=0.1))
    return statistics.median(timing.times)


def bare(call: Callable[[], object], seconds: float) -> float:
    """Median seconds of the plainest loop that one would write."""
    for _ in range(10):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 20:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    artifact = Artifact.open(options.artifact)
    with open_backend(artifact, device="cpu", threads=options.threads) as backend:
        shape = [1 if n == -1 else n for n in artifact.manifest.input.shape]
        frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        rivals: dict[str, Callable[[], object]] = {"bare loop around the backend": lambda: backend.run(frames)}
        if backend.name == "openvino":
            request = openvino_request(artifact, options.threads)
            rivals["bare loop around OpenVINO's request"] = lambda: request.infer({"frames": frames}, share_inputs=True)
        for name, call in rivals.items():
            pairs: list[tuple[float, float]] = []
            with watched():
                for turn in range(options.pairs):
                    if turn % 2:
                        b = bare(call, options.seconds)
                        pairs.append((ours(backend, options.seconds), b))
                    else:
                        a = ours(backend, options.seconds)
                        pairs.append((a, bare(call, options.seconds)))
            ratios = sorted(a / b for a, b in pairs)
            print(
                f"ours {1e3 * statistics.median(a for a, _ in pairs):.4f} ms, {name} "
                f"{1e3 * statistics.median(b for _, b in pairs):.4f} ms, ratio {statistics.median(ratios):.3f} "
                f"({ratios[0]:.3f}–{ratios[-1]:.3f}, {len(pairs)} pairs)"
            )


def openvino_request(artifact: Artifact, threads: int) -> Any:
    """An inference request on the same IR with the backend's settings, made without it."""
    import openvino as ov

    core = ov.Core()
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads)}
    return core.compile_model(core.read_model(artifact.file(".xml")), "CPU", config).create_infer_request()


if __name__ == "__main__":
    reported(main)
