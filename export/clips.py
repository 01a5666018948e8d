"""Clips of a run's data as the deployed model gets them: for verifying, for calibrating, for accuracy. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.console import progress, say
from dtkd_edge.data.catalogue import Catalogue, open_split
from dtkd_edge.deploy.backends import Backend
from dtkd_edge.errors import DataError, VideoError
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.recipe import DataConfig
from dtkd_edge.video import read_clip

FEWEST = 32  # calibration clips below which the ranges of activations are chance
MEMORY = 1 << 30  # bytes of decoded frames that are held at once

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Calibration:
    """Training clips that int8's ranges are measured on.

    frames: uint8 `[n, T, S, S, 3]`; seed: they were drawn with; sha256: of their list (path, start and end, a line each)
    """

    frames: Frames
    seed: int
    sha256: str


def spread(catalogue: Catalogue, count: int) -> NDArray[np.int64]:
    """At most `count` clip numbers, evenly over the catalogue."""
    return np.unique(np.linspace(0, len(catalogue) - 1, min(count, len(catalogue))).round().astype(np.int64))


def read(
    catalogue: Catalogue, order: Iterable[int], preprocess: Preprocess, count: int | None = None
) -> tuple[Frames, list[int]]:
    """The clips of those numbers until there are `count` → uint8 `[n, T, S, S, 3]`, and their numbers. Broken ones are out."""
    numbers = [int(number) for number in order]
    wanted = len(numbers) if count is None else min(count, len(numbers))
    frames: list[Frames] = []
    kept: list[int] = []
    reason = ""
    with progress("clips", wanted) as bar:
        for number in numbers:
            if len(kept) == wanted:
                break
            clip = catalogue[number]
            try:
                decoded = read_clip(clip.open(), preprocess.sampling, start=clip.start, end=clip.end)
            except VideoError as error:
                reason = error.message
                continue
            frames.append(preprocess.frames(decoded))
            kept.append(number)
            bar.advance()
    if not frames:
        raise DataError(
            f"no {catalogue.name} clip of the run's data decodes; the last: {reason}",
            "point to the data with: --set data.root=FOLDER",
        )
    return np.stack(frames), kept


def fitting(count: int, preprocess: Preprocess) -> int:
    """`count`, or as many clips as fit into MEMORY."""
    return max(1, min(count, MEMORY // (preprocess.sampling.frames * preprocess.crop**2 * 3)))


def calibration(config: DataConfig, preprocess: Preprocess, count: int, seed: int) -> Calibration:
    """`count` training clips, or all where there are fewer, drawn with `seed`. DataError for less than FEWEST."""
    catalogue = open_split(config, "train")
    order = np.random.default_rng([seed, len(catalogue)]).permutation(len(catalogue))
    frames, numbers = read(catalogue, order, preprocess, fitting(count, preprocess))
    if len(frames) < FEWEST:
        raise DataError(
            f"--precision int8: {len(frames)} usable training clips in {catalogue.root}, calibration needs {FEWEST} or more",
            "point to more data with --set data.root=FOLDER, or use a float --precision",
        )
    if len(frames) < count:
        say(f"calibrating on {len(frames)} clips, {count} were asked for: there are no more, or no more fit into memory")
    digest = hashlib.sha256()
    for number in numbers:
        clip = catalogue[number]
        path = clip.path.relative_to(catalogue.root) if clip.path.is_relative_to(catalogue.root) else clip.path
        digest.update(f"{path.as_posix()}\t{clip.start}\t{clip.end}\n".encode("utf-8", "surrogateescape"))
    return Calibration(frames, seed, digest.hexdigest())


def feeds(backend: Backend, clips: Frames) -> Iterator[dict[str, NDArray]]:
    """The graph's inputs for every clip, in the batch size of the graph; the last batch is filled up from the front.

    A stream graph gets each clip's last frame, with the states that `backend`, a float32 one, has by then.
    """
    manifest = backend.artifact.manifest
    batch = max(manifest.input.shape[0], 1)
    for start in range(0, len(clips), batch):
        part = clips[np.arange(start, start + batch) % len(clips)]
        if manifest.mode == "clip":
            yield {"frames": part}
            continue
        backend.reset()
        *earlier, last = part.swapaxes(0, 1)
        for frames in (*earlier, *[last] * manifest.delay):
            backend.run(np.ascontiguousarray(frames))
        yield {"frames": np.ascontiguousarray(last), **backend.states}
    backend.reset()
