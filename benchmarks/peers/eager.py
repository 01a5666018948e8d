"""A run's artefacts against its student in torch: `python -m dtkd_edge.benchmarks.peers.eager RUN [--threads 1] [--compile]`.

One clip at a time on the CPU: torch's eager mode (and torch.compile), normalisation included, taking turns with the artefacts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks.report import number
from dtkd_edge.benchmarks.scenarios import Budget, Subject, run_closed
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.deploy.backends.base import Backend
from dtkd_edge.runs import run_artifacts


def torch_query(run: Path, frames: np.ndarray, threads: int, compiled: bool) -> Callable[[int], object]:
    import torch

    from dtkd_edge.models.base import fit_clip
    from dtkd_edge.models.saved import load_model

    torch.set_num_threads(threads)
    model, _ = load_model(run / "student")
    call = torch.compile(model) if compiled else model

    def query(i: int) -> object:
        with torch.inference_mode():
            logits = call(fit_clip(torch.from_numpy(frames), model.info))
            return {head: value.numpy() for head, value in logits.items()}

    return query


def artifact_query(backend: Backend, frames: np.ndarray) -> Callable[[int], object]:
    return lambda i: backend.run(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    artifacts = [a for a in map(Artifact.open, run_artifacts(options.run)) if a.manifest.mode == "clip"]
    if not artifacts:
        raise SystemExit(f"{options.run}: nothing exported; run: dtkd-edge export {options.run}")
    backends = [open_backend(a, device="cpu", threads=options.threads) for a in artifacts]
    shape = [1, *artifacts[0].manifest.input.shape[1:]]
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    subjects = [Subject("torch eager", torch_query(options.run, frames, options.threads, False))]
    if options.compile:
        subjects.append(Subject("torch.compile", torch_query(options.run, frames, options.threads, True)))
    subjects += [Subject(b.artifact.folder.name, artifact_query(b, frames)) for b in backends]
    timings = run_closed(subjects, Budget(queries=100, seconds=options.seconds, warmup=1.0))
    base = timings[0].latency(90).p50
    for subject, timing in zip(subjects, timings, strict=True):
        latency = timing.latency(90)
        print(
            f"{subject.label:24s} p50 {number(latency.p50):>8s} ms  p90 {number(latency.p90):>8s} ms  {base / latency.p50:6.2f} x"
            f"   halves differ {100 * timing.noisy:.0f} %"
        )
    for backend in backends:
        backend.close()


if __name__ == "__main__":
    main()
