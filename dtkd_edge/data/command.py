"""`dtkd-edge data …`: make the generated sets, and read a data set through from end to end. No torch."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtkd_edge import recipe
from dtkd_edge.console import print_table, progress, say, write_result
from dtkd_edge.data.catalogue import SETS, Catalogue, open_split
from dtkd_edge.data.motion import generate
from dtkd_edge.errors import DataError, VideoError
from dtkd_edge.files import sha256
from dtkd_edge.recipe import DataConfig
from dtkd_edge.video import Video

CHUNK = 32  # frames decoded at a time, so that a long video does not fill the memory


def synth(out: Path, *, kind: str, clips: int, val_clips: int, size: int, seed: int) -> None:
    """Write a generated set to `out`; see dtkd_edge.data.motion."""
    start = time.perf_counter()
    generate(out, kind, clips, val_clips, size, seed)
    say(f"{out}: {clips} training and {val_clips} validation clips of {kind} ({time.perf_counter() - start:.1f} s)")


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


def read_through(path: Path) -> Read:
    """Decode every frame of a file."""
    found = Read()
    start = time.perf_counter()
    try:
        video = Video(path)
        found.fps = video.fps
        for first in range(0, len(video), CHUNK):
            frames = video.read(np.arange(first, min(first + CHUNK, len(video))))
            found.height, found.width = frames.shape[1:3]
            found.frames += len(frames)
        found.seconds = time.perf_counter() - start
        found.sha256 = sha256(path)
    except VideoError as error:
        found.broken = error.message.removeprefix(f"{path}: ")
    except OSError as error:
        found.broken = error.strerror or str(error)
    return found


def check(source: str, *, overrides: list[str], json: str | None) -> dict[str, Any]:
    """Read every clip of a recipe's data set: counts, balance, broken files, files on both sides, decoding speed.

    source: a recipe's name or file, or a kind of data set with its defaults (folder, csv, motion, …).
    Raises DataError, after the report, where more than data.max_broken of the files are broken.
    """
    config = _data_config(source, overrides)
    sides = {"train": open_split(config, "train"), "val": open_split(config, "val")}
    reads: dict[str, dict[Path, Read]] = {}
    start = time.perf_counter()
    for side, catalogue in sides.items():
        files = sorted({catalogue.path(i) for i in range(len(catalogue))})
        reads[side] = dict(zip(files, _read_all(side, files), strict=True))
    wall = time.perf_counter() - start
    report = {side: _summary(sides[side], reads[side]) for side in sides}
    decoded = [read for side in reads.values() for read in side.values() if not read.broken]
    both = _on_both_sides(reads["train"], reads["val"])
    result: dict[str, Any] = {
        "kind": config.kind,
        "root": str(sides["train"].root),
        "classes": {head: len(names) for head, names in sides["train"].classes.items()},
        **report,
        "on_both_sides": both,
        "decode": {
            "seconds": round(wall, 2),
            "frames_per_second_all_cores": round(sum(read.frames for read in decoded) / wall, 1),
        },
    }
    if json is not None:
        write_result(result, json)
    if json != "-":
        _print(result, sides["train"])
    broken = sum(len(report[side]["broken"]) for side in sides)
    total = sum(report[side]["files"] for side in sides)
    if broken > config.max_broken * total:
        raise DataError(
            f"{sides['train'].root}: {broken} of {total} files are broken, more than data.max_broken = {config.max_broken:g}",
            "repair or remove them, or raise data.max_broken",
        )
    return result


def _data_config(source: str, overrides: list[str]) -> DataConfig:
    """The data section of a recipe. Where no recipe has that name, the kind of a data set stands for its defaults."""
    if source not in SETS or source in recipe.shipped() or Path(source).exists():
        return recipe.load(source, overrides).data
    return recipe.data_section({"kind": source}, overrides, source)


def _read_all(side: str, files: list[Path]) -> Iterable[Read]:
    # The decoder lets go of the interpreter lock: threads use all cores.
    with progress(side, len(files)) as bar, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        reads = []
        for read in pool.map(read_through, files):
            reads.append(read)
            bar.advance()
        return reads


def _summary(catalogue: Catalogue, reads: dict[Path, Read]) -> dict[str, Any]:
    good = [read for read in reads.values() if not read.broken]
    balance = {
        head: dict(zip(names, np.bincount(catalogue.labels(head), minlength=len(names)).tolist(), strict=True))
        for head, names in catalogue.classes.items()
    }
    return {
        "clips": len(catalogue),
        "files": len(reads),
        "broken": {str(path): read.broken for path, read in reads.items() if read.broken},
        "frames": _range([read.frames for read in good]),
        "fps": _range([round(read.fps, 3) for read in good]),
        "width": _range([read.width for read in good]),
        "height": _range([read.height for read in good]),
        "clips_per_class": balance,
        "copies": _copies(reads),
    }


def _range(values: list[Any]) -> dict[str, Any] | None:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)} if values else None


def _copies(reads: dict[Path, Read]) -> list[list[str]]:
    """Files of one side that have the same content."""
    same = defaultdict(list)
    for path, read in reads.items():
        if read.sha256:
            same[read.sha256].append(str(path))
    return [paths for paths in same.values() if len(paths) > 1]


def _on_both_sides(train: dict[Path, Read], val: dict[Path, Read]) -> list[list[str]]:
    """Training and validation files of the same content: what makes an accuracy look better than it is."""
    seen = {read.sha256: path for path, read in train.items() if read.sha256}
    return [[str(seen[read.sha256]), str(path)] for path, read in val.items() if read.sha256 in seen]


def _print(result: dict[str, Any], train: Catalogue) -> None:
    from rich.table import Table

    table = Table(title=f"{result['kind']}: {result['root']}")
    table.add_column("")
    for side in ("train", "val"):
        table.add_column(side, justify="right")
    sides = [result[side] for side in ("train", "val")]
    table.add_row("clips", *(str(side["clips"]) for side in sides))
    table.add_row("broken files", *(str(len(side["broken"])) for side in sides))
    table.add_row("copies of another file", *(str(sum(len(c) - 1 for c in side["copies"])) for side in sides))
    for key in ("frames", "fps", "width", "height"):
        table.add_row(f"{key}, min – median – max", *(_span(side[key]) for side in sides))
    for head, names in train.classes.items():
        table.add_section()
        rows = sorted(names, key=lambda name: -sides[0]["clips_per_class"][head][name])
        shown = rows if len(rows) <= 20 else [*rows[:10], *rows[-10:]]
        for name in shown:
            table.add_row(f"{head}: {name}", *(str(side["clips_per_class"][head][name]) for side in sides))
        if len(rows) > len(shown):
            table.add_row(f"… {len(rows) - len(shown)} more in between", "", "")
    print_table(table)
    for side, found in zip(("train", "val"), sides, strict=True):
        for path, why in found["broken"].items():
            say(f"{side}: broken: {path}: {why}")
    for one, other in result["on_both_sides"]:
        say(f"on both sides: {one} is {other}")
    say(f"decoded at {result['decode']['frames_per_second_all_cores']:.0f} frames/s on all cores")


def _span(values: dict[str, Any] | None) -> str:
    return "–" if values is None else f"{values['min']:g} – {values['median']:g} – {values['max']:g}"
