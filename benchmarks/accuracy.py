"""Accuracy of artefacts over labelled clips, through the preprocessing that deployment uses. No torch.

One temporal × one spatial view: the number that an edge device has. Every clip is decoded once, whatever the number of artefacts.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.benchmarks.record import Accuracy, HeadAccuracy
from dtkd_edge.benchmarks.statistics import wilson
from dtkd_edge.console import progress, say
from dtkd_edge.deploy.backends import Backend
from dtkd_edge.errors import DataError, VideoError
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.video import read_clip


class Labelled(Protocol):
    """What is needed of a catalogue: clips with `open()`, `labels` (head → class number), `start`, `end`; class names by head."""

    classes: dict[str, list[str]]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


@dataclass
class _Tally:
    maps: dict[str, list[int]]  # head → catalogue's class number → artefact's class number, -1 where it has none
    right1: dict[str, int] = field(default_factory=dict)
    right5: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)

    def add(self, head: str, logits: NDArray[np.float32], label: int) -> None:
        target = self.maps[head][label]
        if target < 0:
            self.unknown[head] = self.unknown.get(head, 0) + 1
            return
        # Ties count against the model, and so does what is not a number: a constant or broken output must not look right.
        better = int((~(logits < logits[target])).sum()) - 1
        self.seen[head] = self.seen.get(head, 0) + 1
        self.right1[head] = self.right1.get(head, 0) + (better < 1)
        self.right5[head] = self.right5.get(head, 0) + (better < 5)


def match_labels(have: dict[str, list[str]], want: dict[str, list[str]], artifact: str) -> dict[str, list[int]]:
    """Catalogue classes `want` → class numbers of an artefact's labels `have`, by name; DataError where none is in common."""
    maps: dict[str, list[int]] = {}
    for head, names in want.items():
        if head in have:
            numbers = {name: i for i, name in enumerate(have[head])}
            found = [numbers.get(name, -1) for name in names]
            if max(found, default=-1) >= 0:
                maps[head] = found
    if not maps:
        raise DataError(f"{artifact}: no label in common with the data", "give the data it was trained on with --data")
    return maps


def measure_accuracy(backends: Sequence[Backend], clips: Labelled, data: str, limit: int | None = None) -> list[Accuracy]:
    """Top-1 and top-5 of every backend over `clips` (`limit` of them, drawn with a fixed seed); broken ones are counted."""
    tallies = [_Tally(match_labels(b.artifact.manifest.labels, clips.classes, str(b.artifact.folder))) for b in backends]
    specs = [b.artifact.manifest.preprocess for b in backends]
    order = np.arange(len(clips))
    if limit is not None and limit < len(order):
        order = np.sort(np.random.default_rng(0).permutation(order)[:limit])
    broken = 0
    with progress("accuracy", len(order)) as bar:
        for number, inputs in _decoded(clips, order, list(dict.fromkeys(specs))):
            bar.advance()
            if isinstance(inputs, VideoError):
                broken += 1
                say(f"skipped: {inputs.message}")
                continue
            for backend, tally, spec in zip(backends, tallies, specs, strict=True):
                logits = backend.run_clips(inputs[spec][None])
                for head in tally.maps:
                    if head in clips[number].labels:
                        tally.add(head, logits[head][0], int(clips[number].labels[head]))
    return [_result(tally, data, broken) for tally in tallies]


def _decoded(
    clips: Labelled, order: NDArray[np.int64], specs: list[Preprocess]
) -> Iterator[tuple[int, dict[Preprocess, NDArray[np.uint8]] | VideoError]]:
    """Model inputs in order, decoded a few clips ahead (the decoder works outside of Python's lock)."""

    def work(number: int) -> dict[Preprocess, NDArray[np.uint8]] | VideoError:
        clip, raw, out = clips[number], {}, {}
        try:
            for spec in specs:
                if spec.sampling not in raw:
                    raw[spec.sampling] = read_clip(clip.open(), spec.sampling, start=clip.start, end=clip.end)
                out[spec] = spec.frames(raw[spec.sampling])
        except VideoError as error:
            return error
        return out

    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="accuracy") as pool:
        ahead: deque[tuple[int, Future[Any]]] = deque()
        try:
            for number in order:
                ahead.append((int(number), pool.submit(work, int(number))))
                if len(ahead) > 2 * workers:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def _result(tally: _Tally, data: str, broken: int) -> Accuracy:
    head = next(iter(tally.maps))
    seen = tally.seen.get(head, 0)
    if not seen:
        raise DataError(f"{data}: no clip could be used for accuracy", "check it with: dtkd-edge data check")
    return Accuracy(
        top1=tally.right1[head] / seen,
        top5=tally.right5[head] / seen,
        n=seen,
        top1_interval=wilson(tally.right1[head], seen),
        top5_interval=wilson(tally.right5[head], seen),
        data=data,
        broken=broken,
        unknown=tally.unknown.get(head, 0),
        heads={
            h: HeadAccuracy(top1=tally.right1[h] / tally.seen[h], top5=tally.right5[h] / tally.seen[h])
            for h in tally.maps
            if tally.seen.get(h)
        }
        if len(tally.maps) > 1
        else {},
    )
