"""Which clips a data set has, and their labels. No torch: benchmarks use this on devices.

`open_split` reads a data set by its `kind`; to add one, write a function `(config, split) -> Catalogue` and enter it in SETS.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.data.members import Member, Place, Shard
from dtkd_edge.errors import DataError, RecipeError, did_you_mean
from dtkd_edge.frames import FrameFolder, FrameRange
from dtkd_edge.recipe import DataConfig
from dtkd_edge.video import Source, Video

Split = Literal["train", "val"]
SIDES: tuple[Split, ...] = ("train", "val")
Ints = NDArray[np.int64]
FRAME_RATE = 30.0  # of raw frames, where neither the data set nor data.frame_rate says


@dataclass(frozen=True)
class Clip:
    """One labelled clip. start and end are seconds in the file; none: the whole file.

    frames given: a clip of raw frames; path is then their folder with the pattern of their names, such as `clip/img_%05d.jpg`.
    member given: a file inside a tar shard; path is then that of the shard, with the file's name in it.
    """

    path: Path
    labels: dict[str, int]
    start: float | None = None
    end: float | None = None
    frames: FrameRange | None = None
    member: Member | None = None

    def open(self) -> Source:
        """What the clip is cut out of. Raises VideoError for what is missing or does not decode; see Member.read for shards."""
        if self.member is not None:
            return Video(self.path, data=self.member.read())
        return Video(self.path) if self.frames is None else FrameFolder(self.path, self.frames)

    def state(self) -> list[int]:
        """Numbers that change when the file does; none where it is missing."""
        if self.member is not None:
            return self.member.state
        try:
            found = (self.path if self.frames is None else self.path.parent).stat()
        except OSError:
            return []
        return [found.st_size, found.st_mtime_ns]


class Catalogue:
    """Clips by number. Everything is kept in numpy arrays, so that 100,000 rows cost a few MB and do not grow in workers.

    root: the folder that `paths` are relative to (absolute paths stay as they are); a URL only names the data set.
    labels: one class number per clip for each head; classes: the names of each head's classes.
    times: `[n, 2]` seconds, not-a-number where the whole file is meant. groups: clips of one number (for example of one
    source video) that a split must not part. frames: `[n, 2]` number of the first raw frame and how many (0: all of the
    folder); rates: `[n]` raw frames per second. ids: the data set's own names of its clips.
    parts: clips that are scored apart too, `{part: {head: bool [n]}}`. members: `[n, 3]` where a clip is a file inside one of
    `shards`: the shard's number, offset and size in bytes. missing: clips that an official list has and this copy has not.
    notes: lines that whoever uses the clips should tell the person. held_out: whether it was split off the training clips.
    """

    def __init__(
        self,
        name: str,
        root: Place,
        paths: Sequence[str] | NDArray[np.bytes_],
        labels: dict[str, Ints],
        classes: dict[str, list[str]],
        *,
        times: NDArray[np.float64] | None = None,
        groups: Ints | None = None,
        frames: Ints | None = None,
        rates: NDArray[np.float64] | None = None,
        ids: NDArray[np.bytes_] | None = None,
        parts: dict[str, dict[str, NDArray[np.bool_]]] | None = None,
        members: Ints | None = None,
        shards: Sequence[Shard] = (),
        missing: Sequence[str] = (),
        notes: Sequence[str] = (),
        held_out: bool = False,
    ) -> None:
        self.name = name
        self.root = root
        self.classes = classes
        self.groups = groups
        self.ids = ids
        self.parts = parts or {}
        self.shards = shards
        self.missing = missing
        self.notes = tuple(notes)
        self.held_out = held_out
        self._members = members
        self._frames = frames
        self._rates = rates
        self._paths = paths if isinstance(paths, np.ndarray) else np.array([os.fsencode(p) for p in paths], dtype=np.bytes_)
        self._labels = {head: np.asarray(values, dtype=np.int64) for head, values in labels.items()}
        self._times = times
        if not len(self._paths):
            raise DataError(f"{root}: no clips ({name})", "check data.root and the lists")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Clip:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, end = (None, None) if self._times is None else (_seconds(t) for t in self._times[index])
        labels = {head: int(values[index]) for head, values in self._labels.items()}
        if self._members is not None:
            shard, offset, size = (int(n) for n in self._members[index])
            return Clip(self.path(index), labels, start, end, member=Member(self.shards[shard], offset, size))
        if self._frames is None:
            return Clip(self.path(index), labels, start, end)
        first, count = (int(n) for n in self._frames[index])
        rate = FRAME_RATE if self._rates is None else float(self._rates[index])
        return Clip(self.path(index), labels, start, end, FrameRange(first, count, rate))

    def path(self, index: int) -> Path:
        name = os.fsdecode(self._paths[index])
        return self.root / name if isinstance(self.root, Path) else Path(name)

    def names(self) -> list[str]:
        """What tells the clips apart: the path, and after tabs start and end where parts of files are meant."""
        paths = [os.fsdecode(path) for path in self._paths]
        if self._times is None:
            return paths
        return ["\t".join([path, *map(str, times)]) for path, times in zip(paths, self._times.tolist(), strict=True)]

    def labels(self, head: str | None = None) -> Ints:
        """Class numbers `[n]` of one head; of the first where none is named."""
        return self._labels[next(iter(self._labels)) if head is None else head]

    @property
    def labelled(self) -> bool:
        """Whether every clip has its labels."""
        return all((values >= 0).all() for values in self._labels.values())

    def subset(self, indices: Sequence[int] | Ints) -> Catalogue:
        """The clips of those numbers, in that order, with the same classes."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Catalogue(
            self.name,
            self.root,
            self._paths[chosen],
            {head: values[chosen] for head, values in self._labels.items()},
            self.classes,
            times=None if self._times is None else self._times[chosen],
            groups=None if self.groups is None else self.groups[chosen],
            frames=None if self._frames is None else self._frames[chosen],
            rates=None if self._rates is None else self._rates[chosen],
            ids=None if self.ids is None else self.ids[chosen],
            parts={part: {head: mask[chosen] for head, mask in masks.items()} for part, masks in self.parts.items()},
            members=None if self._members is None else self._members[chosen],
            shards=self.shards,
            notes=self.notes,
            held_out=self.held_out,
        )


def _seconds(time: np.float64) -> float | None:
    return None if np.isnan(time) else float(time)


Opener = Callable[[DataConfig, Split], Catalogue]


def _opener(config: DataConfig) -> Opener:
    if config.kind not in SETS:
        hint = f"{did_you_mean(config.kind, SETS)}one of: {', '.join(SETS)}"
        raise RecipeError(f"data.kind: {config.kind!r} is no known data set", hint)
    return SETS[config.kind]


def need_root(config: DataConfig) -> Path:
    """The folder of a kind that cannot do without; DataError where none is named, or none is there."""
    if config.folder is None:
        raise DataError(f"data.root: kind {config.kind} needs the folder of the data set", "--set data.root=FOLDER")
    if not config.folder.is_dir():
        raise DataError(f"{config.folder}: no such folder", "check data.root")
    return config.folder


def check_root(config: DataConfig) -> None:
    """What `open_split` would say of a kind and a root that cannot be, without reading the data set."""
    _opener(config)
    if config.kind in GENERATED or (config.kind in OPTIONAL_ROOT and not isinstance(config.root, Path)):
        return
    need_root(config)


def open_split(config: DataConfig, split: Split, *, unlabelled: bool = False) -> Catalogue:
    """The clips of one side of a data set. Raises DataError for lists, folders or labels that do not fit.

    unlabelled: whether the labels may be missing (-1), as those of EPIC-KITCHENS-100's test segments are.
    """
    catalogue = _opener(config)(config, split)
    if not unlabelled and not catalogue.labelled:
        raise DataError(
            f"data.{split}: {getattr(config, split)} has no labels", "such clips are only for: dtkd-edge eval --submission FILE"
        )
    if split == "val" and config.held_out is not None and not catalogue.held_out:
        which = f"data.held_out: {config.held_out}: not used: the data says itself which clips are for validation"
        catalogue.notes = (*catalogue.notes, which)
    return catalogue


def student_subset(catalogue: Catalogue, clips: int | None, seed: int) -> Catalogue:
    """At most `clips` of the clips, as many of each class as there are (first head), chosen by the seed."""
    if clips is None or clips >= len(catalogue):
        return catalogue
    labels = catalogue.labels()
    present = np.unique(labels)
    if clips < len(present):
        raise DataError(
            f"data.student_clips: {clips} clips cannot cover {len(present)} classes", f"set it to at least {len(present)}"
        )
    rng = np.random.default_rng([seed, 1])
    # A clip's turn is its place in its own class; whole turns are taken first, and the last, partial one by lot.
    turn, lot = np.empty(len(labels), np.int64), rng.permutation(len(labels))
    for label in present:
        members = rng.permutation(np.flatnonzero(labels == label))
        turn[members] = np.arange(len(members))
    return catalogue.subset(np.sort(np.lexsort((lot, turn))[:clips]))


def hold_out(labels: Ints, share: float, seed: int, groups: Ints | None = None) -> NDArray[np.bool_]:
    """Which clips go to validation: about `share` of every class, whole groups only, at least one clip left to train on.

    Groups are dealt in seeded order; each goes to validation when that brings the class counts nearer to the wanted ones.
    Time and memory grow with the clips, whatever the number of classes and groups.
    """
    rng = np.random.default_rng([seed, 2])
    classes = int(labels.max()) + 1
    total = np.bincount(labels, minlength=classes)
    wanted = np.maximum(share * total, np.minimum(1, total - 1))  # one clip at least, where two are there
    if groups is None:
        return _hold_out_clips(labels, total, wanted, rng.permutation(len(labels)))
    names, group_of = np.unique(groups, return_inverse=True)
    chosen = _hold_out_groups(group_of.reshape(-1), labels, total, wanted, rng.permutation(len(names)))
    return chosen[group_of.reshape(-1)]


def _hold_out_clips(labels: Ints, total: Ints, wanted: NDArray[np.float64], order: Ints) -> NDArray[np.bool_]:
    """Where every clip is a group of its own, the first so many of each class go: a further one brings a class nearer as long as
    more than half a clip is wanted."""
    many = np.clip(np.ceil(wanted - 0.5), 0, total - 1).astype(np.int64)
    dealt = order[np.argsort(labels[order], kind="stable")]  # class by class, in the order of dealing
    turn = np.arange(len(labels)) - np.repeat(np.cumsum(total) - total, total)
    held = np.zeros(len(labels), bool)
    held[dealt] = turn < many[labels[dealt]]
    return held


def _hold_out_groups(group_of: Ints, labels: Ints, total: Ints, wanted: NDArray[np.float64], order: Ints) -> NDArray[np.bool_]:
    """Which groups go. Of each, only the classes that it has are looked at."""
    classes = len(total)
    pairs, counts = np.unique(group_of * classes + labels, return_counts=True)  # (group, class), by group and then class
    ends = np.searchsorted(pairs, np.arange(len(order) + 1) * classes)
    held, left = np.zeros(classes), total.copy()
    chosen = np.zeros(len(order), bool)
    for group in order:
        own = slice(ends[group], ends[group + 1])
        mine, n = pairs[own] % classes, counts[own]
        apart = wanted[mine] - held[mine]
        gain = np.abs(apart).sum() - np.abs(apart - n).sum()
        if gain > 0 and (left[mine] > n).all():
            chosen[group] = True
            held[mine] += n
            left[mine] -= n
    return chosen


def _generated(config: DataConfig, split: Split) -> Catalogue:
    from dtkd_edge.data.folder import refuse_own_clips
    from dtkd_edge.data.lists import read_lists, two_sides
    from dtkd_edge.data.motion import default_folder, generate

    if config.folder is not None:
        refuse_own_clips(config.folder, config.kind)
    wanted = (config.kind, config.clips, config.val_clips, config.frame_size, config.seed)
    folder = generate(config.folder or default_folder(*wanted), *wanted)
    return two_sides(*read_lists(config.kind, folder, folder / "train.csv", folder / "val.csv"), config)[split]


def _from(module: str, function: str) -> Opener:
    """An opener that imports its module when it is called."""

    def open_it(config: DataConfig, split: Split) -> Catalogue:
        opened: Catalogue = getattr(importlib.import_module(f"dtkd_edge.data.{module}"), function)(config, split)
        return opened

    return open_it


GENERATED = ("motion", "order")
OPTIONAL_ROOT = ("csv", "video-list", "frame-list", "shards")  # beside the list, or a URL
SETS: dict[str, Opener] = {
    **dict.fromkeys(GENERATED, _generated),
    "folder": _from("folder", "open_folder"),
    "csv": _from("lists", "open_lists"),
    "shards": _from("shards", "open_shards"),
    "video-list": _from("mmaction", "open_video_list"),
    "frame-list": _from("mmaction", "open_frame_list"),
    "hmdb51": _from("hmdb51", "open_hmdb51"),
    "ucf101": _from("ucf101", "open_ucf101"),
    "kinetics400": _from("kinetics", "open_kinetics"),
    "kinetics600": _from("kinetics", "open_kinetics"),
    "kinetics700": _from("kinetics", "open_kinetics"),
    "ssv2": _from("ssv2", "open_ssv2"),
    "epic100": _from("epic100", "open_epic100"),
}
