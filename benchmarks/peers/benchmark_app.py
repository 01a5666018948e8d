"""Our single-stream median against OpenVINO's own tool: `python -m dtkd_edge.benchmarks.peers.benchmark_app ARTIFACT`.

Same IR, `benchmark_app -hint none -nireq 1 -api sync`, taking turns. It times the inference alone; we also hand over
the input and copy the result out. Needs `benchmark_app` on PATH (it comes with openvino).
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks.peers.overhead import ours
from dtkd_edge.deploy.backends import open_backend


def median_ms(tool: str, artifact: Artifact, seconds: int, threads: int) -> float:
    command = [
        tool,
        "-m",
        str(artifact.file(".xml")),
        "-d",
        "CPU",
        "-hint",
        "none",
        "-nireq",
        "1",
        "-api",
        "sync",
        "-t",
        str(seconds),
    ]
    command += ["-nthreads", str(threads), "-infer_precision", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Median:\s+([\d.]+) (ms|us)", done.stdout)
    if found is None:
        raise SystemExit(f"benchmark_app: no median in its output:\n{done.stdout[-800:]}{done.stderr[-800:]}")
    return float(found[1]) / (1 if found[2] == "ms" else 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    beside = Path(sys.executable).with_name("benchmark_app")
    tool = str(beside) if beside.is_file() else shutil.which("benchmark_app")
    if tool is None:
        raise SystemExit("benchmark_app is not installed: pip install openvino")
    artifact = Artifact.open(options.artifact)
    pairs: list[tuple[float, float]] = []
    with open_backend(artifact, device="cpu", threads=options.threads) as backend:
        for turn in range(options.pairs):
            first = 1e3 * ours(backend, options.seconds) if turn % 2 == 0 else 0.0
            theirs = median_ms(tool, artifact, options.seconds, options.threads)
            pairs.append((first or 1e3 * ours(backend, options.seconds), theirs))
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"ours {statistics.median(a for a, _ in pairs):.4f} ms, benchmark_app {statistics.median(b for _, b in pairs):.4f} ms, "
        f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f}–{ratios[-1]:.3f}, {len(pairs)} pairs)"
    )


if __name__ == "__main__":
    main()
