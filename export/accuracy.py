"""The accuracy gate: top-1 on the validation split beside the float32 network's, clip by clip. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.artifact import AccuracyPart
from dtkd_edge.console import counted
from dtkd_edge.data.catalogue import open_split
from dtkd_edge.data.lists import HEAD
from dtkd_edge.deploy.backends import Backend
from dtkd_edge.errors import DataError
from dtkd_edge.export import clips
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.recipe import DataConfig

CLIPS = 1000  # of the validation split, at most
FEW = 100  # below so many clips one of them alone is more than a point

Logits = dict[str, NDArray[np.float32]]


@dataclass
class Gate:
    """Labelled validation clips, and what the float32 network says of them.

    frames: uint8 `[n, T, S, S, 3]`; labels: head → int64 `[n]`, -1 where the clip has no label that the model knows;
    reference: head → float32 logits `[n, K]`; max_drop: points of top-1 that an artefact may lose
    """

    frames: NDArray[np.uint8]
    labels: dict[str, NDArray[np.int64]]
    max_drop: float
    reference: Logits

    def measure(self, backend: Backend) -> AccuracyPart:
        return paired(self.labels, self.reference, backend.run_clips(self.frames), self.max_drop)


def open_gate(
    config: DataConfig,
    preprocess: Preprocess,
    labels: dict[str, list[str]],
    max_drop: float,
    reference: Backend,
    *,
    most: int = CLIPS,
) -> Gate:
    """The validation clips, at most `most` and spread evenly. DataError where none is labelled with a class of the model."""
    catalogue = open_split(config, "val")
    frames, numbers = clips.read(catalogue, clips.spread(catalogue, clips.fitting(most, preprocess)), preprocess)
    own: dict[str, NDArray[np.int64]] = {}
    for head in labels.keys() & catalogue.classes.keys():
        numbering = {name: i for i, name in enumerate(labels[head])}
        to_own = np.array([numbering.get(name, -1) for name in catalogue.classes[head]], np.int64)
        own[head] = to_own[catalogue.labels(head)[numbers]]
    if not any((values >= 0).any() for values in own.values()):
        raise DataError(
            f"{catalogue.root}: no validation clip has a label of the model; the accuracy gate needs some",
            "give the data it was trained on: --set data.root=FOLDER",
        )
    return Gate(frames, own, max_drop, reference.run_clips(frames))


def right(logits: NDArray, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which clips of logits `[n, classes]` get their label; none whose logits are no numbers."""
    answered: NDArray[np.bool_] = np.equal(logits.argmax(1), labels) & np.isfinite(logits).all(1)
    return answered


def paired(labels: dict[str, NDArray[np.int64]], reference: Logits, got: Logits, max_drop: float) -> AccuracyPart:
    """Compare on the same clips; the head that loses most stands for all.

    The standard error is that of the mean of paired differences: only clips on which exactly one of the two is right count.
    """
    parts = []
    for head in sorted(labels):
        known = labels[head] >= 0
        if not known.any():
            continue
        before, after = (right(logits[head], labels[head])[known] for logits in (reference, got))
        lost = before.astype(float) - after
        n = len(lost)
        drop = 100 * float(lost.mean())
        error = 100 * float(lost.std(ddof=1) / np.sqrt(n)) if n > 1 else 100.0
        parts.append(
            AccuracyPart(
                head=head,
                clips=n,
                top1_reference=float(before.mean()),
                top1=float(after.mean()),
                drop=drop,
                stderr=error,
                max_drop=max_drop,
                passed=drop <= max_drop + 1e-9,
            )
        )
    return max(parts, key=lambda part: part.drop)


def named(part: AccuracyPart) -> str:
    """Whose top-1 it is, in front of that word: nothing where there is one head of the usual name."""
    return "" if part.head == HEAD else f"{part.head} "


def words(part: AccuracyPart) -> str:
    """The part as a clause of the verdict."""
    change = f"{abs(part.drop):.1f} points " + ("lower than" if part.drop > 0 else "above" if part.drop < 0 else "from")
    text = (
        f"{named(part)}top-1 {change} float32's ({part.top1_reference:.1%} → {part.top1:.1%}, ± {part.stderr:.1f}, "
        f"n {counted(part.clips, 'clip')}, allowed {part.max_drop:g})"
    )
    return text + (f"; few clips: one is {100 / part.clips:.1f} points" if part.clips < FEW else "")
