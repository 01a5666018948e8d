"""What one timed query does: inference alone, or with preprocessing and decoding, on real clips where there are some."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.benchmarks.scenarios import Scenario
from dtkd_edge.deploy.backends import Backend
from dtkd_edge.errors import UsageError, VideoError
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.video import read_clip

POOL = 16  # different inputs that queries go round
ROUNDS = 4
OPEN_BATCH = 8  # clips of an artefact that takes any number
STEPS = ("decode", "preprocess")
_WORDS = {
    "decode": "decode the file",
    "preprocess": "resize and crop",
    "inference": "uint8 frames on the host → logits on the host",
}


def parse_include(text: str) -> tuple[str, ...]:
    """'preprocess,decode' → the steps in order; decoding includes preprocessing."""
    asked = {part.strip() for part in text.split(",") if part.strip()} - {"inference"}
    for name in asked - set(STEPS):
        raise UsageError(f"--include {name}: no step of that name", f"choose from: {', '.join(STEPS)}")
    return STEPS if "decode" in asked else tuple(s for s in STEPS if s in asked)


def timed_region(include: tuple[str, ...]) -> str:
    return " + ".join(_WORDS[step] for step in (*include, "inference"))


def included(region: str) -> str:
    """What of `--include` a timed region holds, in short: 'decode' (which holds preprocess too), 'preprocess' or ''."""
    return next((step for step in STEPS if _WORDS[step] in region), "")


@dataclass
class Inputs:
    """A few clips for one preprocessing. clips: catalogue entries (none: made-up frames); frames: `[POOL, T, H, W, 3]`."""

    source: str
    spec: Preprocess
    frames: NDArray[np.uint8]
    raw: list[NDArray[np.uint8]]
    clips: list[Any]


def make_inputs(spec: Preprocess, clips: Iterable[Any] = (), source: str = "") -> Inputs:
    """Decode up to POOL clips; without any that decodes, seeded noise of 320 × 240 (its content costs a CNN the same)."""
    raw: list[NDArray[np.uint8]] = []
    used: list[Any] = []
    for clip in clips:
        try:
            raw.append(read_clip(clip.open(), spec.sampling, start=clip.start, end=clip.end))
        except VideoError:
            continue
        used.append(clip)
        if len(used) == POOL:
            break
    if not raw:
        rng = np.random.default_rng(0)
        raw = [rng.integers(0, 256, (spec.sampling.frames, 240, 320, 3), np.uint8) for _ in range(4)]
        source = "noise, seed 0"
    return Inputs(source, spec, np.stack([spec.frames(frames) for frames in raw]), raw, used)


def make_query(
    backend: Backend, scenario: Scenario, include: tuple[str, ...], inputs: Inputs
) -> tuple[Callable[[int], object], int]:
    """(query(i), clips per query) for a scenario; i goes round the inputs. A stream artefact's query is a frame per stream."""
    batch = backend.artifact.manifest.input.shape[0]
    # Of several requests side by side each gets ROUNDS batches, so that the wait for the last is a small part; where the batch is
    # open, one of OPEN_BATCH.
    rounds = ROUNDS if backend.at_once > 1 and batch > 0 else 1
    clips = scenario.clips or (batch if batch > 0 else OPEN_BATCH) * backend.at_once * rounds
    pool, spec = len(inputs.frames), inputs.spec
    picks = [[(start + k) % pool for k in range(clips)] for start in range(0, pool, clips)]
    if backend.artifact.manifest.mode == "stream":
        return _stream_query(backend, include, inputs, picks), clips
    if not include:
        ready = [np.ascontiguousarray(inputs.frames[pick]) for pick in picks]
        return lambda i: backend.run(ready[i % len(ready)]), clips
    if "decode" not in include:
        raw = inputs.raw
        return lambda i: backend.run(np.stack([spec.frames(raw[k]) for k in picks[i % len(picks)]])), clips
    if not inputs.clips:
        raise UsageError("--include decode: there is no video to decode", "name labelled videos with --data FOLDER")

    def from_file(k: int) -> NDArray[np.uint8]:
        clip = inputs.clips[k]
        return spec.frames(read_clip(clip.open(), spec.sampling, start=clip.start, end=clip.end))

    return lambda i: backend.run(np.stack([from_file(k) for k in picks[i % len(picks)]])), clips


def _stream_query(backend: Backend, include: tuple[str, ...], inputs: Inputs, picks: list[list[int]]) -> Callable[[int], object]:
    """The streams' next frames, together; their clips follow one another. The backend refuses more streams than it has."""
    if "decode" in include:
        raise UsageError("--include decode: a stream artefact takes a camera's frames", "choose: --include preprocess")
    length, spec = inputs.frames.shape[1], inputs.spec
    if include:
        raw = inputs.raw
        return lambda i: backend.run(np.stack([spec.frame(raw[k][i % length]) for k in picks[i // length % len(picks)]]))
    ready = [np.ascontiguousarray(inputs.frames[pick, t]) for pick in picks for t in range(length)]
    return lambda i: backend.run(ready[i % len(ready)])
