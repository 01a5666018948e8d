"""Accuracy of artefacts over labelled clips, through the preprocessing that deployment uses. No torch.

One temporal × one spatial view: the number that an edge device has. Every clip is decoded once, whatever the number of artefacts,
and answered once, whatever the number of interruptions.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.benchmarks.answers import UNKNOWN, Answer, Answers, Journal, answer
from dtkd_edge.benchmarks.record import Accuracy, HeadAccuracy
from dtkd_edge.benchmarks.statistics import wilson
from dtkd_edge.console import progress, say
from dtkd_edge.deploy.backends import Backend
from dtkd_edge.errors import ArtifactError, DataError, DtkdEdgeError, VideoError
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.video import read_clip

ACTION = "action"  # the pair of verb and noun, beside the two heads
Reference = Mapping[str, NDArray[np.int64]]  # head → class that the torch student names, by clip (or UNKNOWN)


class Labelled(Protocol):
    """What is needed of a catalogue: clips with `open()`, `state()`, `path`, `labels` (head → class number), `start`, `end`;
    class names by head."""

    classes: dict[str, list[str]]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


@dataclass
class Candidate:
    """An artefact whose accuracy is measured. error: why that ended early."""

    backend: Backend
    journal: Journal = field(default_factory=Journal)
    reference: Reference = field(default_factory=dict)
    error: DtkdEdgeError | None = None

    @property
    def spec(self) -> Preprocess:
        return self.backend.artifact.manifest.preprocess


def match_labels(have: dict[str, list[str]], want: dict[str, list[str]], artifact: str) -> dict[str, list[int]]:
    """Catalogue classes `want` → class numbers of an artefact's labels `have`, by name; DataError where none is in common."""
    maps: dict[str, list[int]] = {}
    for head, names in want.items():
        if head in have:
            numbers = {name: i for i, name in enumerate(have[head])}
            found = [numbers.get(name, UNKNOWN) for name in names]
            if max(found, default=UNKNOWN) >= 0:
                maps[head] = found
    if not maps:
        raise DataError(f"{artifact}: no label in common with the data", "give the data it was trained on with --data")
    return maps


def data_digest(clips: Labelled) -> str:
    """Of the clips in their order, with their labels."""
    digest = hashlib.sha256(repr(clips.classes).encode("utf-8", "surrogateescape"))
    for clip in (clips[i] for i in range(len(clips))):
        digest.update(f"{clip.path}\t{clip.start}\t{clip.end}\t{clip.labels}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def measure_accuracy(
    candidates: Sequence[Candidate], clips: Labelled, data: str, limit: int | None = None
) -> list[Accuracy | DtkdEdgeError]:
    """Top-1 and top-5 of every artefact over `clips` (`limit` of them, drawn with a fixed seed); broken ones are counted.

    An error of one artefact's runtime stands in its place and ends no other's. DataError where no clip can be used.
    """
    from dtkd_edge.data.pairs import PAIR

    maps = {
        id(c): match_labels(c.backend.artifact.manifest.labels, clips.classes, str(c.backend.artifact.folder)) for c in candidates
    }
    order = np.arange(len(clips))
    if limit is not None and limit < len(order):
        order = np.sort(np.random.default_rng(0).permutation(order)[:limit])
    found: dict[int, dict[int, Answers]] = {id(c): {} for c in candidates}
    broken = 0
    wanted: dict[int, list[Candidate]] = {}
    for number in map(int, order):
        state = clips[number].state() if any(len(c.journal) for c in candidates) else []
        for candidate in candidates:
            known = candidate.journal.get(number, state)
            if known is None:
                wanted.setdefault(number, []).append(candidate)
            else:
                found[id(candidate)][number] = known
    if len(wanted) < len(order):
        say(f"accuracy: going on with an interrupted one, {len(order) - len(wanted)} of {len(order)} clips are answered")
    with progress("accuracy", len(order)) as bar:
        bar.advance(len(order) - len(wanted))
        for number, inputs in _decoded(clips, wanted):
            bar.advance()
            clip = clips[number]
            if isinstance(inputs, VideoError):
                broken += 1
                say(f"skipped: {inputs.message}")
                continue
            for candidate in wanted[number]:
                if candidate.error is not None:
                    continue
                try:
                    logits = candidate.backend.run_clips(inputs[candidate.spec][None])
                except DtkdEdgeError as error:
                    candidate.error = error
                    continue
                except Exception as error:  # runtimes raise whatever they like
                    candidate.error = runtime_error(error)
                    continue
                labels = {h: classes[int(clip.labels[h])] for h, classes in maps[id(candidate)].items() if h in clip.labels}
                answers = {head: answer(logits[head][0], label) for head, label in labels.items()}
                if set(labels) == set(PAIR):
                    answers[ACTION] = pair_answer(logits, labels)
                candidate.journal.add(number, clip.state(), answers)
                found[id(candidate)][number] = answers
            if all(c.error is not None or len(found[id(c)]) == len(order) for c in candidates):
                break
    heads = {id(c): [*maps[id(c)], *([ACTION] if set(maps[id(c)]) == set(PAIR) else [])] for c in candidates}
    return [c.error or _result(found[id(c)], heads[id(c)], c.reference, data, broken) for c in candidates]


def pair_answer(logits: Mapping[str, NDArray[Any]], labels: Mapping[str, int]) -> Answer:
    """Of verb and noun together, as `dtkd-edge eval` ranks them. It has no class number of its own."""
    from dtkd_edge.data.pairs import PAIR, pair_ranks

    if UNKNOWN in labels.values():
        return Answer(UNKNOWN, UNKNOWN)
    verb, noun = PAIR
    (place,) = pair_ranks(logits[verb], logits[noun], np.array([labels[verb]]), np.array([labels[noun]]))
    return Answer(UNKNOWN, int(place))


def runtime_error(error: Exception) -> ArtifactError:
    """A runtime's own exception in our words."""
    words = (str(error).strip().splitlines() or [""])[0]
    return ArtifactError(f"the runtime failed: {type(error).__name__}: {words}")


def _decoded(
    clips: Labelled, wanted: Mapping[int, Sequence[Candidate]]
) -> Iterator[tuple[int, dict[Preprocess, NDArray[np.uint8]] | VideoError]]:
    """Model inputs in order, decoded a few clips ahead (the decoder works outside of Python's lock)."""

    def work(number: int) -> dict[Preprocess, NDArray[np.uint8]] | VideoError:
        clip, raw, out = clips[number], {}, {}
        try:
            for spec in dict.fromkeys(candidate.spec for candidate in wanted[number]):
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
            for number in wanted:
                ahead.append((number, pool.submit(work, number)))
                if len(ahead) > 2 * workers:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def _result(found: Mapping[int, Answers], heads: Sequence[str], reference: Reference, data: str, broken: int) -> Accuracy:
    places = {head: np.array([a[head].place for a in found.values() if head in a], np.int64) for head in heads}
    known = {head: values[values != UNKNOWN] for head, values in places.items()}
    head = heads[0]
    seen = len(known[head])
    if not seen:
        raise DataError(
            f"{data}: no clip could be used for accuracy", "check it with: dtkd-edge data check RECIPE --set data.root=FOLDER"
        )
    right1, right5 = (int((known[head] < k).sum()) for k in (1, 5))
    pairs = [
        (answers[head].top, int(reference[head][number]))
        for number, answers in found.items()
        if head in reference and head in answers and reference[head][number] != UNKNOWN
    ]
    return Accuracy(
        top1=right1 / seen,
        top5=right5 / seen,
        n=seen,
        top1_interval=wilson(right1, seen),
        top5_interval=wilson(right5, seen),
        data=data,
        broken=broken,
        unknown=len(places[head]) - seen,
        agreement=sum(a == b for a, b in pairs) / len(pairs) if pairs else None,
        agreement_n=len(pairs),
        heads={h: HeadAccuracy(top1=float((v < 1).mean()), top5=float((v < 5).mean())) for h, v in known.items() if len(v)}
        if len(heads) > 1
        else {},
    )
