"""Data sets given by csv lists: `path,label`, and if wanted `group`, `start` and `end` (seconds). No torch.

With a header line the columns may stand in any order, and path and label may have other usual names (PATHS, LABELS); without
one the first two are path and label. Several heads are columns `label.HEAD`, such as `label.verb` and `label.noun`. Paths are
relative to data.root, or to the list's own folder. A file `classes.txt` in the root (one name per line; `classes.HEAD.txt` of
several heads) fixes the classes and their order; otherwise they are the training list's labels, sorted (by number where all are
numbers).
"""

from __future__ import annotations

import codecs
import csv
import math
import os
import shlex
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.console import say
from dtkd_edge.data.catalogue import Catalogue, Ints, Split, hold_out, open_split
from dtkd_edge.errors import DataError, DtkdEdgeError
from dtkd_edge.files import atomic_path
from dtkd_edge.recipe import DataConfig

HEAD = "action"
MORE = ("group", "start", "end")
PATHS = ("path", "video_path", "video", "filename", "file", "clip")  # what a header calls the columns, best first
LABELS = ("label", "class", "category")


@dataclass
class Rows:
    """One list as read: equally long columns."""

    source: Path
    lines: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    labels: dict[str, list[str]] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)
    grouped: bool = False
    header: bool = False


def open_lists(config: DataConfig, split: Split) -> Catalogue:
    """`kind: csv`: data.train and, where given, data.val."""
    if config.train is None:
        raise DataError("data.train: kind csv needs a training list", "--set data.train=LIST.csv")
    train = find_list(config.folder, config.train, "data.train")
    val = None if config.val is None else find_list(config.folder, config.val, "data.val")
    return two_sides(*read_lists("csv", config.folder or train.parent, train, val), config)[split]


def read_lists(name: str, root: Path, train: Path, val: Path | None) -> tuple[Catalogue, Catalogue | None]:
    """The clips of the training list, and of the validation list where there is one."""
    rows = read_rows(train)
    names = {head: _class_names(root, head, labels) for head, labels in rows.labels.items()}
    whole = _catalogue(name, root, rows, names)
    if HEAD in names:  # with several heads, some combinations are rare, and some nouns may only be tested
        counts = np.bincount(whole.labels(HEAD), minlength=len(names[HEAD]))
        missing = [n for n, count in zip(names[HEAD], counts, strict=True) if not count]
        if missing:
            raise DataError(f"{train}: no clip of class {missing[0]!r}", "add clips of it, or take it out of classes.txt")
    some_exist(whole, train)
    return whole, None if val is None else _catalogue(name, root, read_rows(val), names)


def two_sides(whole: Catalogue, val: Catalogue | None, config: DataConfig) -> dict[str, Catalogue]:
    """Both sides of a data set; where it has none for validation a seeded share is held out."""
    return split_off(whole, config) if val is None else {"train": whole, "val": val}


def split_off(whole: Catalogue, config: DataConfig) -> dict[str, Catalogue]:
    """The clips of data.held_out, or a seeded, class-balanced share, for validation, and the rest."""
    groups = _groups(whole)
    held = None if config.held_out is None else _named(whole, groups, config, config.held_out)
    if config.held_out is None and (listed := config.list_of_run) is not None:
        not_used = f"{listed}: not used: it is of other data than {whole.root}; validation clips are drawn anew"
        whole.notes = (*whole.notes, f"{not_used} (are they the same clips? --set data.held_out={shlex.quote(str(listed))})")
    if held is None:
        held = hold_out(whole.labels(), config.val_share, config.seed, groups)
    if not held.any():
        raise DataError(
            f"{whole.root}: nothing to hold out for validation: every class has one clip, or one group",
            "add clips, or give a validation list with data.val",
        )
    train, val = (whole.subset(np.flatnonzero(side)) for side in (~held, held))
    val.held_out = True
    return {"train": train, "val": val}


def write_held_out(path: Path, val: Catalogue) -> None:
    """Name the clips of a validation side in a file, for data.held_out."""
    with atomic_path(path) as aside:
        aside.write_bytes("".join(f"{name}\n" for name in val.names()).encode("utf-8", "surrogateescape"))


def note_trained_on(scored: Catalogue, own: DataConfig) -> None:
    """A note where clips of --data are among those that a run was trained on, which its own data says."""
    place = own.root if own.root is not None else own.train and Path(own.train).absolute().parent
    if not isinstance(place, Path) or not isinstance(scored.root, Path):
        return
    place, root = place.resolve(), scored.root.resolve()
    if not (place.is_relative_to(root) or root.is_relative_to(place)):
        return
    with suppress(DtkdEdgeError):  # it may have gone
        trained = set(_places(open_split(own, "train")))
        if seen := sum(clip in trained for clip in _places(scored)):
            many = f"{seen} of these {len(scored)} clips were trained on, if they were there then"
            scored.notes = (*scored.notes, f"{many}; leave out --data for those held out")


def _places(clips: Catalogue) -> list[str]:
    root = clips.root.resolve() if isinstance(clips.root, Path) else ""
    return [os.path.join(root, name) for name in _plain_names(clips)]  # noqa: PTH118  (of many clips)


def _plain_names(whole: Catalogue) -> list[str]:
    return [name.removeprefix("./") for name in whole.names()]


def _groups(whole: Catalogue) -> Ints | None:
    """What a split must not part: the groups, and a clip that is listed more than once; None: every clip is on its own."""
    names = _plain_names(whole)
    if len(set(names)) == len(names):  # nearly always, and then there is nothing to sort
        return whole.groups
    clips = np.unique(names, return_inverse=True)[1].reshape(-1)
    if whole.groups is None:
        return clips
    joined = np.unique(whole.groups, return_inverse=True)[1].reshape(-1)
    before = None
    while before is None or (joined != before).any():  # groups that share a clip, each with the least number of them
        before = joined
        for same in (clips, before):
            least = np.full(same.max() + 1, len(whole))
            np.minimum.at(least, same, joined)
            joined = least[same]
    return joined


def _named(whole: Catalogue, groups: Ints | None, config: DataConfig, source: Path) -> NDArray[np.bool_] | None:
    """Which clips a file names, with all of their groups; None where it is a run's and names none of them any more."""
    try:
        lines = source.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except OSError as error:
        raise DataError(f"data.held_out: {source}: not readable: {error.strerror or error}", "check the path") from error
    names = {line.rstrip("\r").removeprefix("./") for line in lines} - {""}
    own = _plain_names(whole)
    held = np.array([name in names for name in own])
    if not held.any():
        if source != config.list_of_run:
            raise DataError(
                f"data.held_out: {source}: none of its clips is in {whole.root}",
                "name them as the data does, one per line, such as " + own[0].replace("\t", "<tab>"),
            )
        whole.notes = (*whole.notes, f"{source}: none of its clips is in {whole.root}; validation clips are drawn anew")
        return None
    if gone := names.difference(own):
        whole.notes = (*whole.notes, f"{source}: {len(gone)} of its {len(names)} clips are no longer in {whole.root}")
    return held if groups is None else np.isin(groups, groups[held])


def read_rows(path: Path) -> Rows:
    """A list file. Raises DataError with file, line number and what was expected."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not readable: {error.strerror or error}", "check the path and its permissions") from error
    text = _text(path, data)
    rows = Rows(path)
    columns: dict[str, int] | None = None
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns, rows.header = _columns(cells)
                rows.grouped = "group" in columns
                if rows.header:
                    continue
            _row(rows, cells, columns, reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not csv: {error}", "expected path,label with quotes where needed") from error
    if not rows.paths:
        raise DataError(f"{path}: the list is empty", "expected lines of path,label")
    _say_repeats(rows)
    return rows


def _text(path: Path, data: bytes) -> str:
    """UTF-8, whose stray bytes stay those of file names, or the UTF-16 that some spreadsheets write."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        with suppress(UnicodeDecodeError):
            return data.decode("utf-16")
    if b"\0" in data:
        raise DataError(f"{path}: not a text in UTF-8", "save the list as csv in UTF-8")
    return data.decode("utf-8-sig", errors="surrogateescape")


def _say_repeats(rows: Rows) -> None:
    """A clip may stand in a list more than once, to weigh more; but a person should know."""
    first: dict[tuple[str, str], int] = {}
    again = [i for i, key in enumerate(zip(rows.paths, map(str, rows.times), strict=True)) if first.setdefault(key, i) != i]
    if again:
        i = again[0]
        j = first[rows.paths[i], str(rows.times[i])]
        same = all(labels[i] == labels[j] for labels in rows.labels.values())
        how = "" if same else ", with another label"
        say(
            f"{rows.source}:{rows.lines[i]}: {rows.paths[i]} stands in line {rows.lines[j]} already{how} "
            f"({len(again)} such lines in all)"
        )


def _columns(cells: list[str]) -> tuple[dict[str, int], bool]:
    """Where each column stands, labels as `label.HEAD`; and whether the line is a header."""
    names = [cell.strip().lower() for cell in cells]
    labels = [name for name in names if name.startswith("label.") and len(name) > len("label.")]
    path = next((name for name in PATHS if name in names), None)
    label = next((name for name in (LABELS[:1] if labels else LABELS) if name in names), None)
    if path is None or not (label or labels):
        return {"path": 0, f"label.{HEAD}": 1}, False
    heads = {f"label.{HEAD}": names.index(label)} if label else {name: names.index(name) for name in labels}
    return {"path": names.index(path), **heads, **{n: names.index(n) for n in MORE if n in names}}, True


def _row(rows: Rows, cells: list[str], columns: dict[str, int], line: int) -> None:
    where = f"{rows.source}:{line}"
    if len(cells) <= max(columns.values()):
        found, wanted = ",".join(cells), ",".join(columns).replace(f"label.{HEAD}", "label")
        raise DataError(f"{where}: expected {wanted}; found {found[:80]!r}", "mend or remove that line")
    value = {name: cells[at].strip() for name, at in columns.items()}
    for name, text in value.items():
        if not text and name not in MORE:
            raise DataError(f"{where}: empty {name.removesuffix(f'.{HEAD}')}", "mend or remove that line")
    times = []
    for name in ("start", "end"):
        text = value.get(name, "")
        try:
            seconds = float(text) if text else math.nan
        except ValueError:
            raise DataError(f"{where}: {name} {text!r} is not a number of seconds", "mend or remove that line") from None
        if text and not 0 <= seconds < math.inf:  # nor `nan`
            raise DataError(f"{where}: {name} {text!r} is not a time in a file", "expected seconds of at least 0")
        times.append(seconds)
    if times[1] <= times[0]:
        raise DataError(f"{where}: end {times[1]:g} is not after start {times[0]:g}", "mend or remove that line")
    rows.lines.append(line)
    rows.paths.append(value["path"])
    for name, text in value.items():
        if name.startswith("label."):
            rows.labels.setdefault(name.removeprefix("label."), []).append(text)
    rows.groups.append(value.get("group", ""))
    rows.times.append((times[0], times[1]))


def listed_classes(folder: Path) -> list[str] | None:
    """Class names of a folder's classes.txt, or of its only label_map*.txt; none where it has neither."""
    maps = sorted(file for file in folder.glob("label_map*.txt") if file.is_file())
    listed = folder / "classes.txt"
    if listed.is_file():
        return read_classes(listed)
    return read_classes(maps[0]) if len(maps) == 1 else None


def read_classes(listed: Path) -> list[str]:
    """One name per line. Raises DataError for a name that stands there twice."""
    try:
        names = [line.strip() for line in listed.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{listed}: not readable: {error}", "expected one class name per line, in UTF-8") from error
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise DataError(f"{listed}: class {repeated[0]!r} stands there twice", "remove one of the lines")
    return names


def _class_names(root: Path, head: str, labels: list[str]) -> list[str]:
    listed = root / ("classes.txt" if head == HEAD else f"classes.{head}.txt")
    if listed.is_file():
        return read_classes(listed)
    found = set(labels)
    return sorted(found, key=int) if all(label.isdecimal() for label in found) else sorted(found)


def _refuse_unknown_header(root: Path, rows: Rows) -> None:
    """A header of other names would pass for a clip, and for a class. A clip that is missing has an ending, or a folder."""
    first, *others = rows.paths
    if rows.header or not others or Path(first).suffix or "/" in first:
        return
    if not os.path.exists(root / first) and os.path.exists(root / others[0]):  # noqa: PTH110  (does not raise without permission)
        raise DataError(
            f"{rows.source}:{rows.lines[0]}: {first}: no such file, while that of the next line is there",
            "a header names its columns path,label; if that line is a clip, take it out",
        )


def _catalogue(name: str, root: Path, rows: Rows, names: dict[str, list[str]]) -> Catalogue:
    _refuse_unknown_header(root, rows)
    if set(rows.labels) != set(names):
        heads = ", ".join(f"label.{head}" if head != HEAD else "label" for head in names)
        raise DataError(f"{rows.source}:1: expected the training list's columns {heads}", "give both lists the same columns")
    numbers = {}
    for head, own in names.items():
        number = {label: i for i, label in enumerate(own)}
        numbers[head] = np.empty(len(rows.lines), np.int64)
        for i, label in enumerate(rows.labels[head]):
            if label not in number:
                raise DataError(
                    f"{rows.source}:{rows.lines[i]}: label {label!r} is not one of the {len(own)} training classes",
                    "mend that line, or add the class to the training list, and to classes.txt where there is one",
                )
            numbers[head][i] = number[label]
    times = np.array(rows.times)
    groups = None
    if rows.grouped:  # a clip without a group is a group of its own
        groups = np.unique([g or f"\0{i}" for i, g in enumerate(rows.groups)], return_inverse=True)[1].reshape(-1)
    return Catalogue(name, root, rows.paths, numbers, names, times=None if np.isnan(times).all() else times, groups=groups)


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
