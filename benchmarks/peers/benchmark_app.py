"""Our single-stream median against OpenVINO's own tool: `python -m dtkd_edge.benchmarks.peers.benchmark_app ARTIFACT`.

Same IR, `benchmark_app -hint latency -nireq 1 -api sync`, taking turns. It times the inference alone; we also hand over the input
and copy the result out. With --threads its hint is `none`: the tool takes no -nthreads beside another one.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks.peers.overhead import ours
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.exits import reported

# Its program, wherever pip put it: the module of that name has no __main__.
_TOOL = [sys.executable, "-c", "from openvino.tools.benchmark.main import main; main()"]


def median_ms(artifact: Artifact, seconds: int, threads: int | None) -> float:
    command = [*_TOOL, "-m", str(artifact.file(".xml")), "-d", "CPU", "-nireq", "1", "-api", "sync", "-t", str(seconds)]
    command += ["-infer_precision", "f32"]
    command += ["-hint", "none", "-nthreads", str(threads)] if threads else ["-hint", "latency"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Median:\s+([\d.]+) (ms|us)", done.stdout)
    if found is None:
        raise SystemExit(f"benchmark_app: no median in its output:\n{done.stdout[-800:]}{done.stderr[-800:]}")
    return float(found[1]) / (1 if found[2] == "ms" else 1e3)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: the runtime's choice")
    asked = parser.parse_args(argv)
    artifact = Artifact.open(asked.artifact)
    pairs: list[tuple[float, float]] = []
    with open_backend(artifact, device="cpu", threads=asked.threads) as backend:
        for turn in range(asked.pairs):
            first = 1e3 * ours(backend, asked.seconds) if turn % 2 == 0 else 0.0
            theirs = median_ms(artifact, asked.seconds, asked.threads)
            pairs.append((first or 1e3 * ours(backend, asked.seconds), theirs))
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"ours {statistics.median(a for a, _ in pairs):.4f} ms, benchmark_app {statistics.median(b for _, b in pairs):.4f} ms, "
        f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f}–{ratios[-1]:.3f}, {len(pairs)} pairs)"
    )


if __name__ == "__main__":
    reported(main)
