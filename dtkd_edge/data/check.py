"""`dtkd-edge data check`: read a data set through from end to end. No torch.

Files are read by threads (the decoder lets go of the interpreter lock). What is read is kept in a journal below the cache folder
until the check ends: one that was interrupted goes on where it stopped. A file that has changed since is read again.
"""

from __future__ import annotations

import hashlib
import json as json_
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from dtkd_edge import recipe_reader
from dtkd_edge.console import check_result, counted, progress, say, write_result
from dtkd_edge.data.catalogue import SETS, SIDES, Catalogue, Clip, open_split
from dtkd_edge.data.check_report import print_report
from dtkd_edge.data.folder import require_classes
from dtkd_edge.data.mirror import flip_warning
from dtkd_edge.errors import DataError, UsageError, VideoError
from dtkd_edge.files import cache_folder, check_output, sha256
from dtkd_edge.frames import FrameFolder
from dtkd_edge.recipe import DataConfig, Recipe
from dtkd_edge.video import Source, Video

NAMED = 20  # missing videos of one side
CHUNK = 32  # frames decoded at a time, so that a long video does not fill the memory


@dataclass
class Read:
    """What reading one file through has shown."""

    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    sha256: str = ""
    broken: str = ""


def read_through(clip: Clip) -> Read:
    """Decode every frame of the file, or of the raw frames, that a clip is cut out of."""
    found = Read()
    start = time.perf_counter()
    path = clip.path
    try:
        data = None if clip.member is None else clip.member.read()
        video = clip.open() if data is None else Video(path, data=data)
        found.fps = video.fps
        for first in range(0, len(video), CHUNK):
            frames = video.read(np.arange(first, min(first + CHUNK, len(video))))
            found.height, found.width = frames.shape[1:3]
            found.frames += len(frames)
        found.seconds = time.perf_counter() - start
        found.sha256 = _digest(video) if data is None else hashlib.sha256(data).hexdigest()
    except VideoError as error:
        found.broken = error.message.removeprefix(f"{path}: ").removeprefix(f"{path.parent}/")
    except OSError as error:
        found.broken = error.strerror or str(error)
    return found


def _digest(source: Source) -> str:
    if not isinstance(source, FrameFolder):
        return sha256(source.path)
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.file(index).read_bytes())
    return digest.hexdigest()


def name_of(clip: Clip) -> str:
    """The file that a clip is cut out of; of raw frames the folder, and which of them."""
    if clip.frames is None:
        return str(clip.path)
    first, count = clip.frames.first, clip.frames.count
    return str(clip.path.parent) + (f" [{first} to {first + count - 1}]" if count else "")


def check(
    source: str, *, overrides: list[str], json: str | None, sheet: Path | None = None, sums: bool = False
) -> dict[str, Any]:
    """Read every clip of a recipe's data set: counts, balance, broken files, files on both sides, decoding speed.

    source: a recipe's name or file, or a kind of data set with its defaults (folder, csv, hmdb51, …). sheet: where to write a
    picture with a few frames of every class. sums: hash whole shards too. Raises DataError for a shard that is not that of the
    index, and, after the report, where more than data.max_missing of a side's official list is missing, or more than
    data.max_broken of its files are broken.
    """
    if sheet is not None:
        check_output("--sheet", sheet, ".png")
    check_result(json)
    recipe = _recipe(source, overrides)
    config = recipe.data
    counting = config.model_copy(update={"max_missing": 1.0})  # what there is, is looked at all the same
    sides = {side: open_split(counting, side) for side in SIDES}
    require_classes(sides["train"])
    notes = [line for catalogue in sides.values() for line in catalogue.notes]
    for line in dict.fromkeys([*notes, *flip_warning(recipe.augment.flip, sides["train"].classes)]):
        say(line)
    shards = [shard for catalogue in sides.values() for shard in catalogue.shards]
    if sums and not shards:
        raise UsageError(f"--sums: kind {config.kind} has no shards whose sums are known", "leave it out")
    if shards:
        from dtkd_edge.data.shards import verify

        verify(shards, sums=sums)
    reads: dict[str, dict[str, Read]] = {}
    start = time.perf_counter()
    with _journal(config) as journal:
        for side, catalogue in sides.items():
            reads[side] = _read_all(side, catalogue, journal)
    wall = time.perf_counter() - start
    report: dict[str, dict[str, Any]] = {side: _summary(sides[side], reads[side]) for side in sides}
    frames = sum(read.frames for read in journal.new if not read.broken)
    result: dict[str, Any] = {
        "kind": config.kind,
        "root": str(sides["train"].root),
        "classes": {head: len(names) for head, names in sides["train"].classes.items()},
        **report,
        **({"shards": len(shards)} if shards else {}),
        "on_both_sides": _on_both_sides(reads["train"], reads["val"]),
        "decode": {
            "seconds": round(wall, 2),
            "frames_per_second_all_cores": round(frames / wall, 1),
            "frames_per_second_one_thread": round(frames / max(sum(read.seconds for read in journal.new), 1e-9), 1),
        },
    }
    if sheet is not None:
        from dtkd_edge.data.sheet import write_sheet

        broken_names = {name for found in reads.values() for name, read in found.items() if read.broken}
        write_sheet(sheet, sides["train"], lambda clip: name_of(clip) not in broken_names)
    if json is not None:
        write_result(result, json)
    if json != "-":
        print_report(result, sides["train"])
    if sheet is not None:
        say(f"contact sheet: {sheet}")
    for side in SIDES:
        if sides[side].missing:
            open_split(config, side)  # raises, where they are more than data.max_missing allows
        found = report[side]
        too_many_broken(f"{sides[side].root}: {side}", len(found["broken"]), found["files"], config.max_broken)
    return result


def too_many_broken(where: str, broken: int, total: int, most: float, more: str = "") -> None:
    """DataError where more than the share `most` of one side does not decode. Each side by itself: a small validation side
    would otherwise vanish behind a large training side."""
    if broken > most * total:
        raise DataError(
            f"{where}: {broken} of {total} do not decode, more than data.max_broken = {most:g}",
            f"repair or remove them, or raise data.max_broken{more}",
        )


class _Journal:
    """What has been read, by name of the file; appended to while it is being read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.new: list[Read] = []
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[list[int], Read]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
                try:
                    name, state, read = json_.loads(line)
                    self._kept[name] = (state, Read(**read))
                except (ValueError, TypeError):  # a kill in the middle of a line
                    continue
            if self._kept:
                say(f"going on with an interrupted check: {counted(len(self._kept), 'file')} read already")
        self.stream: TextIO | None = None
        with suppress(OSError):  # where nothing can be written, an interrupted check begins anew
            path.parent.mkdir(parents=True, exist_ok=True)
            self.stream = path.open("a", encoding="utf-8", errors="surrogateescape")

    def read(self, clip: Clip) -> Read:
        name, state = name_of(clip), clip.state()
        kept = self._kept.get(name)
        if kept is not None and kept[0] == state:
            return kept[1]
        read = read_through(clip)
        with self._lock:
            self.new.append(read)
            if self.stream is not None:
                self.stream.write(json_.dumps([name, state, asdict(read)]) + "\n")
                self.stream.flush()
        return read


@contextmanager
def _journal(config: DataConfig) -> Iterator[_Journal]:
    """The journal of this data set's check; it is removed when the check ends."""
    path = cache_folder() / f"check-{hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]}.jsonl"
    journal = _Journal(path)
    with journal.stream or nullcontext():
        yield journal
    with suppress(OSError):
        path.unlink(missing_ok=True)


def data_config(source: str, overrides: list[str]) -> DataConfig:
    """The data section of a recipe. Where no recipe has that name, the kind of a data set stands for its defaults."""
    return _recipe(source, overrides).data


def _recipe(source: str, overrides: list[str]) -> Recipe:
    if source not in SETS or source in recipe_reader.shipped() or Path(source).is_file():
        return recipe_reader.load(source, overrides)
    return recipe_reader.around_data({"kind": source}, overrides, source)


def _read_all(side: str, catalogue: Catalogue, journal: _Journal) -> dict[str, Read]:
    """Every file of one side once, by name."""
    files = {name_of(clip): clip for clip in (catalogue[i] for i in range(len(catalogue)))}
    names = sorted(files)
    with progress(side, len(names)) as bar, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = {}
        try:
            for name, read in zip(names, pool.map(lambda name: journal.read(files[name]), names), strict=True):
                found[name] = read
                bar.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return found


def _summary(catalogue: Catalogue, reads: dict[str, Read]) -> dict[str, Any]:
    good = [read for read in reads.values() if not read.broken]
    balance = {
        head: dict(zip(names, np.bincount(catalogue.labels(head), minlength=len(names)).tolist(), strict=True))
        for head, names in catalogue.classes.items()
    }
    return {
        "clips": len(catalogue),
        "files": len(reads),
        "missing": {
            "clips": len(catalogue.missing),
            "of": len(catalogue) + len(catalogue.missing),
            "first": list(dict.fromkeys(catalogue.missing))[:NAMED],
        },
        "broken": {name: read.broken for name, read in reads.items() if read.broken},
        "past_the_end": list(_past_the_end(catalogue, reads)),
        "frames": _range([read.frames for read in good]),
        "fps": _range([round(read.fps, 3) for read in good]),
        "width": _range([read.width for read in good]),
        "height": _range([read.height for read in good]),
        "clips_per_class": balance,
        "copies": _copies(reads),
        "copies_with_another_label": _other_label(catalogue, reads),
    }


def _past_the_end(catalogue: Catalogue, reads: dict[str, Read]) -> Iterable[str]:
    """Clips that begin where their file has ended: its list belongs to another copy, or the file is cut off."""
    for clip in (catalogue[i] for i in range(len(catalogue))):
        if clip.start:
            read = reads[name_of(clip)]
            if not read.broken and read.fps > 0 and clip.start >= read.frames / read.fps:
                yield f"{clip.path}: starts at {clip.start:g} s, the file has {read.frames / read.fps:.1f} s"


def _range(values: list[Any]) -> dict[str, Any] | None:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)} if values else None


def _copies(reads: dict[str, Read]) -> list[list[str]]:
    """Files of one side that have the same content."""
    same = defaultdict(list)
    for name, read in reads.items():
        if read.sha256:
            same[read.sha256].append(name)
    return [names for names in same.values() if len(names) > 1]


def _other_label(catalogue: Catalogue, reads: dict[str, Read]) -> list[list[str]]:
    """Those of the copies that are whole clips, and of which some have another label: one of the two is wrong."""
    clips = (catalogue[i] for i in range(len(catalogue)))
    labels = {name_of(clip): clip.labels for clip in clips if clip.start is None and clip.end is None}
    whole = ([name for name in names if name in labels] for names in _copies(reads))
    return [names for names in whole if any(labels[name] != labels[names[0]] for name in names)]


def _on_both_sides(train: dict[str, Read], val: dict[str, Read]) -> list[list[str]]:
    """Training and validation files of the same content: what makes an accuracy look better than it is."""
    seen = {read.sha256: name for name, read in train.items() if read.sha256}
    return [[seen[read.sha256], name] for name, read in val.items() if read.sha256 in seen]
