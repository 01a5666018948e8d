"""A run's artefacts against its student in torch: `python -m dtkd_edge.benchmarks.peers.eager RUN [--threads 1] [--compile]`.

One clip at a time on the CPU: torch's eager mode (and torch.compile), normalisation included, taking turns with the artefacts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.benchmarks.peers.students import open_torch
from dtkd_edge.benchmarks.peers.turns import Query, clip_artifacts, compare, options
from dtkd_edge.deploy.backends import Backend, open_backend
from dtkd_edge.exits import reported


def torch_query(run: Path, frames: NDArray[np.uint8], threads: int, compiled: bool) -> Query:
    import torch

    from dtkd_edge.models.base import fit_clip

    call, info = open_torch(run, threads, compiled)

    def query(i: int) -> object:
        with torch.inference_mode():
            logits = call(fit_clip(torch.from_numpy(frames), info))
            return {head: value.numpy() for head, value in logits.items()}

    return query


def artifact_query(backend: Backend, frames: NDArray[np.uint8]) -> Query:
    return lambda i: backend.run(frames)


def main(argv: Sequence[str] | None = None) -> None:
    asked = options(__doc__, argv, compiled=True)
    artifacts = clip_artifacts(asked.run)
    frames = np.random.default_rng(0).integers(0, 256, [1, *artifacts[0].manifest.input.shape[1:]], np.uint8)
    with ExitStack() as stack:
        queries: dict[str, Query] = {}
        for artifact in artifacts:
            backend = stack.enter_context(open_backend(artifact, device="cpu", threads=asked.threads))
            queries[artifact.folder.name] = artifact_query(backend, frames)
        queries["torch eager"] = torch_query(asked.run, frames, asked.threads, False)
        if asked.compile:
            queries["torch.compile"] = torch_query(asked.run, frames, asked.threads, True)
        compare(queries, asked)


if __name__ == "__main__":
    reported(main)
