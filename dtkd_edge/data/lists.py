"""Data sets given by csv lists: `path,label`, and if wanted `group`, `start` and `end` (seconds). No torch.

With a header line the columns may stand in any order; without one the first two are path and label. Paths are relative to
data.root, or to the list's own folder. A file `classes.txt` in the root (one name per line) fixes the classes and their
order; otherwise they are the training list's labels, sorted (by number where all are numbers).
"""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dtkd_edge.data.catalogue import Catalogue, Split, hold_out
from dtkd_edge.errors import DataError
from dtkd_edge.recipe import DataConfig

HEAD = "action"
COLUMNS = ("path", "label", "group", "start", "end")


@dataclass
class Rows:
    """One list as read: equally long columns."""

    source: Path
    lines: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)
    grouped: bool = False


def open_lists(config: DataConfig, split: Split) -> Catalogue:
    """`kind: csv`: data.train and, where given, data.val."""
    if config.train is None:
        raise DataError("data.train: kind csv needs a training list", "--set data.train=LIST.csv")
    train = find_list(config.root, config.train, "data.train")
    val = None if config.val is None else find_list(config.root, config.val, "data.val")
    return read_lists("csv", config.root or train.parent, train, val, config)[split]


def read_lists(name: str, root: Path, train: Path, val: Path | None, config: DataConfig) -> dict[str, Catalogue]:
    """Both sides of a data set; without a validation list a seeded share of the training list is held out."""
    rows = read_rows(train)
    names = _class_names(root, rows)
    whole = _catalogue(name, root, rows, names)
    missing = [n for n, count in zip(names, np.bincount(whole.labels(), minlength=len(names)), strict=True) if not count]
    if missing:
        raise DataError(f"{train}: no clip of class {missing[0]!r}", "add clips of it, or take it out of classes.txt")
    some_exist(whole, train)
    if val is not None:
        return {"train": whole, "val": _catalogue(name, root, read_rows(val), names)}
    return split_off(whole, config)


def split_off(whole: Catalogue, config: DataConfig) -> dict[str, Catalogue]:
    """A seeded, class-balanced share for validation, and the rest."""
    held = hold_out(whole.labels(), config.val_share, config.seed, whole.groups)
    if not held.any():
        raise DataError(
            f"{whole.root}: nothing to hold out for validation: every class has one clip, or one group",
            "add clips, or give a validation list with data.val",
        )
    return {"train": whole.subset(np.flatnonzero(~held)), "val": whole.subset(np.flatnonzero(held))}


def read_rows(path: Path) -> Rows:
    """A list file. Raises DataError with file, line number and what was expected."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: not readable: {error.strerror or error}", "check the path and its permissions") from error
    rows = Rows(path)
    columns: dict[str, int] | None = None
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns, is_header = _columns(cells)
                rows.grouped = "group" in columns
                if is_header:
                    continue
            _row(rows, cells, columns, reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not csv: {error}", "expected path,label with quotes where needed") from error
    if not rows.paths:
        raise DataError(f"{path}: the list is empty", "expected lines of path,label")
    return rows


def _columns(cells: list[str]) -> tuple[dict[str, int], bool]:
    names = [cell.strip().lower() for cell in cells]
    if "path" in names and "label" in names:
        return {name: names.index(name) for name in COLUMNS if name in names}, True
    return {"path": 0, "label": 1}, False


def _row(rows: Rows, cells: list[str], columns: dict[str, int], line: int) -> None:
    where = f"{rows.source}:{line}"
    if len(cells) <= max(columns.values()):
        found = ",".join(cells)
        raise DataError(f"{where}: expected {','.join(columns)}; found {found[:80]!r}", "mend or remove that line")
    value = {name: cells[at].strip() for name, at in columns.items()}
    for name in ("path", "label"):
        if not value[name]:
            raise DataError(f"{where}: empty {name}", "mend or remove that line")
    times = []
    for name in ("start", "end"):
        text = value.get(name, "")
        try:
            seconds = float(text) if text else math.nan
        except ValueError:
            raise DataError(f"{where}: {name} {text!r} is not a number of seconds", "mend or remove that line") from None
        if seconds < 0 or math.isinf(seconds):
            raise DataError(f"{where}: {name} {text!r} is not a time in a file", "expected seconds of at least 0")
        times.append(seconds)
    if times[1] <= times[0]:
        raise DataError(f"{where}: end {times[1]:g} is not after start {times[0]:g}", "mend or remove that line")
    rows.lines.append(line)
    rows.paths.append(value["path"])
    rows.labels.append(value["label"])
    rows.groups.append(value.get("group", ""))
    rows.times.append((times[0], times[1]))


def listed_classes(folder: Path) -> list[str] | None:
    """Class names of a folder's classes.txt, or of its only label_map*.txt; none where it has neither."""
    listed = folder / "classes.txt"
    if not listed.is_file():
        maps = sorted(file for file in folder.glob("label_map*.txt") if file.is_file())
        if len(maps) != 1:
            return None
        listed = maps[0]
    try:
        names = [line.strip() for line in listed.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listed}: not readable: {error}", "expected one class name per line, in UTF-8") from error
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise DataError(f"{listed}: class {repeated[0]!r} stands there twice", "remove one of the lines")
    return names


def _class_names(root: Path, rows: Rows) -> list[str]:
    if (root / "classes.txt").is_file():
        return listed_classes(root) or []
    found = set(rows.labels)
    return sorted(found, key=int) if all(label.isdecimal() for label in found) else sorted(found)


def _catalogue(name: str, root: Path, rows: Rows, names: list[str]) -> Catalogue:
    number = {label: i for i, label in enumerate(names)}
    labels = np.empty(len(rows.labels), np.int64)
    for i, label in enumerate(rows.labels):
        if label not in number:
            raise DataError(
                f"{rows.source}:{rows.lines[i]}: label {label!r} is not one of the {len(names)} training classes",
                "mend that line, or add clips of that class to the training list",
            )
        labels[i] = number[label]
    times = np.array(rows.times)
    groups = None
    if rows.grouped:  # a clip without a group is a group of its own
        groups = np.unique([g or f"\0{i}" for i, g in enumerate(rows.groups)], return_inverse=True)[1].reshape(-1)
    return Catalogue(
        name, root, rows.paths, {HEAD: labels}, {HEAD: names}, times=None if np.isnan(times).all() else times, groups=groups
    )


def some_exist(catalogue: Catalogue, source: Path) -> None:
    """A wrong root is said at once. Single missing files are counted and skipped when they are read."""
    sample = [catalogue[int(i)] for i in np.unique(np.linspace(0, len(catalogue) - 1, 50).astype(int))]
    places = [clip.path if clip.frames is None else clip.path.parent for clip in sample]
    if not any(os.path.exists(place) for place in places):  # noqa: PTH110  (does not raise without permission)
        raise DataError(f"{source}: none of its files is there, for example {places[0]}", "check data.root")


def find_list(root: Path | None, name: str, option: str) -> Path:
    """A list file: below data.root, or where the name itself says."""
    for path in ([root / name] if root is not None else []) + [Path(name)]:
        if path.is_file():
            return path
    raise DataError(f"{option}: {name}: no such list" + (f" in {root}" if root else ""), "check the path and data.root")
