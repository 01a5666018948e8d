"""`dtkd-edge data pack`: a data set re-encoded to a short side, for quick reading. No torch.

OUT/videos/…mp4    one file per clip: cut to its part of the source, upright, at a constant rate, without sound
OUT/train.csv, val.csv, classes.txt (classes.HEAD.txt where there are several heads): what kinds `folder` and `csv` read
OUT/pack.json      the settings; pack.jsonl: a line per finished file

Every file is verified (number of frames, size, pixels) before it gets its name. A pack that was interrupted goes on: what is
finished, and whose source has not changed, is not made again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json as json_
import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.console import check_result, counted, progress, say, write_result
from dtkd_edge.data.catalogue import SIDES, Catalogue, Clip, Split, open_split
from dtkd_edge.data.check import data_config, name_of, too_many_broken
from dtkd_edge.data.encode import encode, require_av
from dtkd_edge.data.lists import HEAD
from dtkd_edge.data.members import Place
from dtkd_edge.errors import DataError, VideoError
from dtkd_edge.files import atomic_path, disk_errors, is_foreign, one_at_a_time, write_json, write_text
from dtkd_edge.preprocess import resize_box
from dtkd_edge.video import Source, Video

SETTINGS, JOURNAL = "pack.json", "pack.jsonl"
VERSION = 1
CHUNK = 32  # frames in memory at a time
CHECKED = 3  # frames whose pixels are compared
TOLERANCE = 16.0  # of 255: largest mean difference of a frame; h264 at useful qualities stays below 5


@dataclass(frozen=True)
class Settings:
    """short: pixels of the short side (smaller videos stay as they are). crf: h264's quality, 0 best … 51 worst.
    keyframes: frames from one that is coded by itself to the next."""

    short: int = 256
    crf: int = 20
    keyframes: int = 12


@dataclass
class Packed:
    """One finished (or broken) file."""

    state: list[int]
    frames: int = 0
    width: int = 0
    height: int = 0
    size: int = 0
    broken: str = ""


def pack(
    source: str, out: Path, *, overrides: list[str], settings: Settings, jobs: int | None = None, json: str | None = None
) -> dict[str, Any]:
    """Pack both sides of a recipe's data set into `out`. Raises DataError where more than data.max_broken of the clips do not
    decode (what was packed stays), and where `out` holds something else."""
    require_av()
    check_result(json)
    config = data_config(source, overrides)
    catalogues = {side: open_split(config, side) for side in SIDES}
    clips = {side: [catalogue[i] for i in range(len(catalogue))] for side, catalogue in catalogues.items()}
    names = clip_names([clip for side in SIDES for clip in clips[side]], {side: catalogues[side].root for side in SIDES})
    began = time.perf_counter()
    with disk_errors(out), one_at_a_time(out):
        claim(out, {"version": VERSION, "kind": config.kind, **asdict(settings)})
        done = _Journal(out / JOURNAL)
        work = {name: clip for clip, name in ((c, names[clip_key(c)]) for side in SIDES for c in clips[side])}
        made = _pack_all(out, work, settings, done, jobs)
        broken = {name: found.broken for name in work if (found := done.found[name]).broken}
        for name, why in sorted(broken.items()):
            say(f"left out: {name_of(work[name])}: {why}")
        for side in SIDES:
            files = {names[clip_key(clip)] for clip in clips[side]}
            too_many_broken(f"{out}: {side}", len(files & set(broken)), len(files), config.max_broken, "; what is packed stays")
        for side in SIDES:
            _write_list(out / f"{side}.csv", catalogues[side], [names[clip_key(clip)] for clip in clips[side]], set(broken))
        write_classes(out, catalogues["train"].classes)
    result: dict[str, Any] = {
        "out": str(out),
        "clips": {side: sum(names[clip_key(clip)] not in broken for clip in clips[side]) for side in SIDES},
        "made": made,
        "broken": broken,
        "bytes": sum(done.found[name].size for name in work),
        "seconds": round(time.perf_counter() - began, 2),
    }
    if json is not None:
        write_result(result, json)
    packed = f"{result['clips']['train']} training and {counted(result['clips']['val'], 'validation clip')}"
    size = f"{result['bytes'] / 1e6:.1f} MB in all ({result['seconds']:.1f} s)"
    say(f"{out}: {packed}, {counted(made, 'file')} made now, {size}")
    say(f"train on it with: --set data.kind=folder --set data.root={out}")
    return result


def clip_key(clip: Clip) -> tuple[object, ...]:
    return (clip.path, clip.start, clip.end, clip.frames)


def clip_names(clips: list[Clip], roots: Mapping[Split, Place]) -> dict[tuple[object, ...], str]:
    """A path below OUT for every clip: that of its source below the data set's folder, and which part of it."""
    names: dict[tuple[object, ...], str] = {}
    taken: set[str] = set()
    for clip in clips:
        if clip_key(clip) in names:
            continue
        place = clip.path if clip.frames is None else clip.path.parent
        root = next((root for root in roots.values() if place.is_relative_to(root) and ".." not in place.parts), None)
        if root is None:
            inside = PurePosixPath("elsewhere") / hashlib.sha256(os.fsencode(place)).hexdigest()[:8] / place.name
        else:
            inside = PurePosixPath(place.relative_to(root).as_posix())
        stem = str(inside.with_suffix("")) if clip.frames is None else str(inside)
        part = ""
        if clip.frames is not None and clip.frames.count:
            part = f"_{clip.frames.first:08d}_{clip.frames.count}"
        elif clip.start is not None or clip.end is not None:
            part = f"_{round((clip.start or 0) * 1000):09d}" + ("" if clip.end is None else f"_{round(clip.end * 1000):09d}")
        stem = stem.removeprefix("videos/")
        name = f"videos/{stem}{part}.mp4"
        if name in taken:  # walk.avi beside walk.mp4
            name = f"videos/{stem}{inside.suffix}{part}.mp4"
        number = 2
        while name in taken:
            name = f"videos/{stem}{part}-{number}.mp4"
            number += 1
        taken.add(name)
        names[clip_key(clip)] = name
    return names


def claim(out: Path, wanted: dict[str, Any]) -> None:
    """Make OUT, or go on with it. Raises DataError where it holds anything else."""
    file = out / SETTINGS
    if file.is_file():
        try:
            found = json_.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: not readable: {error}", "delete the folder, or name another one") from error
        if found != wanted:
            other = ", ".join(
                f"{key} {found.get(key)!r} (now {wanted.get(key)!r})"
                for key in {**wanted, **found}
                if found.get(key) != wanted.get(key)
            )
            raise DataError(f"{out}: packed with other settings: {other}", "name another folder, or delete this one")
        return
    if is_foreign(out):
        raise DataError(f"{out}: exists and is no packed data set (no {SETTINGS})", "name a new or an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)


class _Journal:
    """What is packed, by name; appended to as files are finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Packed] = {}
        self._lock = threading.Lock()
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
                try:
                    name, values = json_.loads(line)
                    self.found[name] = Packed(**values)
                except (ValueError, TypeError):  # a kill in the middle of a line
                    continue

    def has(self, name: str, state: list[int], file: Path) -> bool:
        """Whether the file is finished, from a source in that state. What was broken is tried again."""
        found = self.found.get(name)
        if found is None or found.broken or found.state != state:
            return False
        return file.is_file() and file.stat().st_size == found.size

    def add(self, name: str, packed: Packed) -> None:
        with self._lock:
            self.found[name] = packed
            with self.path.open("a", encoding="utf-8", errors="surrogateescape") as stream:
                stream.write("\n" * self._torn() + json_.dumps([name, asdict(packed)]) + "\n")

    def _torn(self) -> bool:
        """Whether the last line has no end: a kill in the middle of it."""
        if not self.path.stat().st_size:
            return False
        with self.path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) != b"\n"


def _pack_all(out: Path, work: dict[str, Clip], settings: Settings, done: _Journal, jobs: int | None) -> int:
    """Make what is not there yet, by threads: decoder and encoder let go of the interpreter lock. Returns how many were made."""
    todo = [name for name, clip in sorted(work.items()) if not done.has(name, clip.state(), out / name)]
    if len(todo) < len(work):
        say(f"{out}: {len(work) - len(todo)} of {counted(len(work), 'clip')} packed already")

    def one(name: str) -> None:
        clip = work[name]
        packed = Packed(clip.state())
        try:
            pack_clip(clip, out / name, settings, packed)
        except VideoError as error:
            packed.broken = error.message.removeprefix(f"{clip.path}: ")
        done.add(name, packed)

    with progress("pack", len(todo)) as bar, ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        try:
            for _ in pool.map(one, todo):
                bar.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sum(not done.found[name].broken for name in todo)


def pack_clip(clip: Clip, path: Path, settings: Settings, packed: Packed) -> None:
    """Write one clip, verify it, and say in `packed` what it is. Raises VideoError where the source does not decode, or the
    result is not what it should be."""
    source = clip.open()
    first, total = source.span(clip.start, clip.end)
    height, width = source.read(np.array([first])).shape[1:3]
    size = packed_size(width, height, settings.short)
    fps = Fraction(source.fps if source.fps > 0 else 25.0)
    with atomic_path(path) as aside:
        frames = _frames(source, first, total, size)
        count = encode(aside, frames, size, fps, crf=settings.crf, preset="veryfast", keyframes=settings.keyframes)
        _verify(Video(aside), source, first, total, size)
        packed.size = aside.stat().st_size
    packed.frames, packed.width, packed.height = count, *size


def packed_size(width: int, height: int, short: int) -> tuple[int, int]:
    """Width and height at that short side, never enlarged, even (h264 stores colour at half size)."""
    scale = min(short / min(width, height), 1.0)
    return tuple(max(2 * int(side * scale / 2 + (0.5 if scale < 1 else 0)), 2) for side in (width, height))  # type: ignore[return-value]


def _fit(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    if abs(width - size[0]) < 2 and abs(height - size[1]) < 2:  # an odd side loses its last line
        return np.ascontiguousarray(frame[: size[1], : size[0]])
    return resize_box(frame, (0, 0, width, height), size)


def _frames(source: Source, first: int, total: int, size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    for at in range(first, first + total, CHUNK):
        yield from source.read(np.arange(at, min(at + CHUNK, first + total)), lambda frame: _fit(frame, size))


def _verify(made: Video, source: Source, first: int, total: int, size: tuple[int, int]) -> None:
    picks = np.unique(np.linspace(0, total - 1, CHECKED).round().astype(np.int64))
    if len(made) != total:
        raise VideoError(f"{source.path}: packed into {len(made)} frames instead of {total}", "report it with the clip")
    found = made.read(picks).astype(np.int16)
    wanted = source.read(first + picks, lambda frame: _fit(frame, size)).astype(np.int16)
    if found.shape != wanted.shape:
        raise VideoError(f"{source.path}: packed into another size than {size[0]}×{size[1]}", "report it with the clip")
    worst = float(np.abs(found - wanted).mean((1, 2, 3)).max())
    if worst > TOLERANCE:
        raise VideoError(f"{source.path}: packed pixels differ by {worst:.0f} of 255 in the mean", "pack with a lower --crf")


def _write_list(path: Path, catalogue: Catalogue, names: list[str], broken: set[str]) -> None:
    heads = list(catalogue.classes)
    columns = ["label"] if heads == [HEAD] else [f"label.{head}" for head in heads]
    grouped = catalogue.groups is not None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", *columns, *(["group"] if grouped else [])])
    labels = {head: catalogue.labels(head) for head in heads}
    for i, name in enumerate(names):
        if name not in broken:
            group = [] if catalogue.groups is None else [int(catalogue.groups[i])]
            writer.writerow([name, *(catalogue.classes[head][labels[head][i]] for head in heads), *group])
    with atomic_path(path) as aside:
        aside.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")


def write_classes(out: Path, classes: dict[str, list[str]]) -> None:
    for head, names in classes.items():
        file = "classes.txt" if list(classes) == [HEAD] else f"classes.{head}.txt"
        write_text(out / file, "".join(f"{name}\n" for name in names))
