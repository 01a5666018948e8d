"""`--precision auto`: every precision of a target, timed in turns on this machine; the fastest that holds the gate wins."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from dtkd_edge.artifact import MANIFEST, Artifact
from dtkd_edge.console import say
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.errors import MissingDependency, VerificationError
from dtkd_edge.export import accuracy, targets, verify
from dtkd_edge.export.golden import Golden
from dtkd_edge.export.targets import Request


def fastest(request: Request, build: Callable[[Request], Artifact]) -> Path:
    """Build all, say a line about each, return the winner's folder. VerificationError when none holds the gate.

    What runs in another precision on this device than it was asked for is no candidate, and neither is what lacks a library.
    """
    made: list[Artifact] = []
    for precision in request.target.precisions:
        one = replace(request, precision=precision)
        try:
            targets.check_needs(one.target, precision)
            artifact = build(one)
        except (MissingDependency, VerificationError) as error:
            say(f"{precision}: left out: {error}")
            continue
        effective = artifact.manifest.effective_precision
        if not effective.startswith(precision):
            say(f"{precision}: left out: this device computes it in {effective}")
            continue
        made.append(artifact)
    if not made:
        raise VerificationError(f"--precision auto: no precision of {request.target.name} holds the gate", "see the lines above")
    ms = _times(made)
    plain = next((ms[i] for i, artifact in enumerate(made) if artifact.manifest.precision == "fp32"), None)
    for artifact, taken in zip(made, ms, strict=True):
        say(_line(artifact, taken, plain))
    best = made[int(np.argmin(ms))]
    # Of a run's artefacts predict, demo and doctor take the newest: from now on this one, until the next export.
    (best.folder / MANIFEST).touch()
    say(f"fastest that holds the gate: {best.manifest.effective_precision}, {best.folder}")
    return best.folder


def _times(artifacts: list[Artifact]) -> list[float]:
    """Milliseconds of each on one thread, in turns."""
    golden = Golden.load(artifacts[0])
    batch = max(artifacts[0].manifest.input.shape[0], 1)
    frames = golden.frames[np.arange(batch) % len(golden.frames)]
    with ExitStack() as stack:
        opened = [stack.enter_context(open_backend(artifact, device="cpu", threads=1)) for artifact in artifacts]
        return verify.latency([verify.one_call(backend) for backend in opened], frames)


def _line(artifact: Artifact, ms: float, plain: float | None) -> str:
    manifest = artifact.manifest
    words = [f"{manifest.effective_precision}: {ms:.2f} ms on one thread"]
    if plain is not None and manifest.precision != "fp32":
        words.append(f"{plain / ms:.2f}× faster than fp32" if plain >= ms else f"{ms / plain:.2f}× SLOWER than fp32")
    if manifest.accuracy:
        words.append(accuracy.words(manifest.accuracy))
    return ", ".join(words)
