"""Write one tar shard in WebDataset's layout, verified before it gets its name. No torch."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dtkd_edge.data.catalogue import Catalogue, Split
from dtkd_edge.data.check import name_of
from dtkd_edge.data.lists import HEAD
from dtkd_edge.data.pack import Packed, Settings, pack_clip
from dtkd_edge.data.shards import Entry
from dtkd_edge.errors import DataError, VideoError
from dtkd_edge.files import atomic_path, sha256
from dtkd_edge.video import Video

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Plan:
    """What one shard is to hold: clips of one side by number, and their keys. digest: changes when any of them does."""

    name: str
    side: Split
    numbers: list[int]
    keys: list[str]
    digest: str


def make_shard(
    out: Path,
    plan: Plan,
    catalogue: Catalogue,
    settings: Settings,
    copy: bool,
    workers: tuple[ThreadPoolExecutor, int],
    advance: Callable[[], None],
) -> Entry:
    """Write one shard aside, read it back, give it its name."""
    entry = Entry(
        name=plan.name, split=plan.side, size=0, sha256="", files=[], offsets=[], sizes=[], numbers=[],
        labels={head: [] for head in catalogue.classes}, plan=plan.digest,
        groups=None if catalogue.groups is None else [], ids=None if catalogue.ids is None else [],
        parts={part: {head: [] for head in masks} for part, masks in catalogue.parts.items()},
    )  # fmt: skip
    digests: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(prefix=".clips-", dir=out, ignore_cleanup_errors=True) as scratch,
        atomic_path(out / plan.name) as aside,
    ):

        def encoded(turn: int) -> tuple[str, bytes] | VideoError:
            try:
                return _clip(catalogue, plan.numbers[turn], Path(scratch) / f"{turn}.mp4", settings, copy)
            except VideoError as error:
                return error

        with tarfile.open(aside, "w") as tar:
            for turn, made in enumerate(_ahead(encoded, range(len(plan.numbers)), *workers)):
                advance()
                number, key = plan.numbers[turn], plan.keys[turn]
                if isinstance(made, VideoError):
                    path = catalogue.path(number)
                    entry.broken[key] = plain_text(made.message.removeprefix(f"{path}: "))
                    continue
                suffix, data = made
                _add(tar, key + suffix, data)
                digests[key + suffix] = hashlib.sha256(data).hexdigest()
                _add(tar, f"{key}.json", json.dumps(_about(catalogue, number, plan.side)).encode())
                labels = catalogue[number].labels
                if list(labels) == [HEAD]:
                    _add(tar, f"{key}.cls", str(labels[HEAD]).encode())
                _enter(entry, catalogue, number, key + suffix)
        entry.offsets, entry.sizes = _read_back(aside, plan.name, digests)
        entry.size, entry.sha256 = aside.stat().st_size, sha256(aside)
    if not entry.files:  # nothing in it decodes: tools that read shards stumble over an empty one
        (out / plan.name).unlink()
        entry.size = 0
    return entry


def _enter(entry: Entry, catalogue: Catalogue, number: int, file: str) -> None:
    entry.files.append(file)
    entry.numbers.append(number)
    for head, values in entry.labels.items():
        values.append(int(catalogue.labels(head)[number]))
    extra = extra_of(catalogue, number)
    if entry.groups is not None:
        entry.groups.append(extra["group"])
    if entry.ids is not None:
        entry.ids.append(extra["id"])
    for part, masks in entry.parts.items():
        for head, values_of in masks.items():
            values_of.append(extra["parts"][part][head])


def _clip(catalogue: Catalogue, number: int, path: Path, settings: Settings, copy: bool) -> tuple[str, bytes]:
    """The ending and the bytes of a packed clip. VideoError where it does not decode."""
    clip = catalogue[number]
    if copy:
        if clip.frames is not None or clip.start is not None or clip.end is not None:
            raise DataError(f"{name_of(clip)}: the clip is not a whole file", "pack it without --copy")
        try:
            data = clip.path.read_bytes() if clip.member is None else clip.member.read()
        except OSError as error:
            raise VideoError(f"{clip.path}: not readable: {error.strerror}", "check the path") from error
        Video(clip.path, data=data).read(np.zeros(1, np.int64))
        return clip.path.suffix.lower() or ".mp4", data
    pack_clip(clip, path, settings, Packed(clip.state()))
    data = path.read_bytes()
    path.unlink()
    return ".mp4", data


def _about(catalogue: Catalogue, number: int, side: str) -> dict[str, Any]:
    """KEY.json: what other tools may want to know."""
    labels = catalogue[number].labels
    names = {head: catalogue.classes[head][label] for head, label in labels.items()}
    extra = {name: value for name, value in extra_of(catalogue, number).items() if name != "parts" and value is not None}
    return {"labels": labels, "classes": names, "split": side, **extra}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no times and owners: the same clips make the same shard
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _read_back(path: Path, name: str, digests: dict[str, str]) -> tuple[list[int], list[int]]:
    """Offsets and sizes of the clips in a written shard, after a look at every byte."""
    offsets, sizes = [], []
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name in digests:
                stream = tar.extractfile(member)
                if stream is None or hashlib.sha256(stream.read()).hexdigest() != digests[member.name]:
                    raise DataError(f"{path.with_name(name)}: {member.name} reads back otherwise", "check the disk")
                offsets.append(member.offset_data)
                sizes.append(member.size)
    return offsets, sizes


def _ahead(work: Callable[[_T], _R], items: Iterable[_T], pool: ThreadPoolExecutor, depth: int) -> Iterator[_R]:
    """What `work` makes of every item, in order, with at most `depth` of them made or being made."""
    waiting: deque[Future[_R]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def extra_of(catalogue: Catalogue, number: int) -> dict[str, Any]:
    """What the index keeps of a clip besides its labels."""
    return {
        "group": None if catalogue.groups is None else int(catalogue.groups[number]),
        "id": None if catalogue.ids is None else plain_text(os.fsdecode(catalogue.ids[number])),
        "parts": {part: {head: bool(mask[number]) for head, mask in masks.items()} for part, masks in catalogue.parts.items()},
    }


def plain_text(name: str) -> str:
    """A name that is no UTF-8 cannot stand in JSON."""
    return name.encode("utf-8", "replace").decode()
