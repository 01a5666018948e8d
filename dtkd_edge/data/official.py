"""What data sets given by their official files have in common: finding the files, reading them line by line, missing videos.

No torch. A line that does not fit is a DataError with file, line number and what was expected. Official lists name videos that
copies lack (Kinetics loses some every year): those are counted and left out, up to data.max_missing.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.console import say
from dtkd_edge.data.catalogue import Catalogue, Ints
from dtkd_edge.decoder import EXTENSIONS
from dtkd_edge.errors import DataError
from dtkd_edge.recipe import DataConfig


@dataclass
class Rows:
    """One list as read: for every clip its line, its path below the folder of videos without ending, its labels."""

    source: Path
    lines: list[int] = field(default_factory=list)
    stems: list[str] = field(default_factory=list)
    labels: dict[str, list[int]] = field(default_factory=dict)
    more: dict[str, list[Any]] = field(default_factory=dict)  # times, frames, rates, ids, group: as Catalogue takes them

    def add(self, line: int, stem: str, labels: Mapping[str, int], **more: object) -> None:
        self.lines.append(line)
        self.stems.append(stem)
        for head, label in labels.items():
            self.labels.setdefault(head, []).append(label)
        for name, value in more.items():
            self.more.setdefault(name, []).append(value)


def bad_line(path: Path, line: int, expected: str, found: str = "") -> DataError:
    shown = f"; found {found[:80]!r}" if found else ""
    return DataError(f"{path}:{line}: expected {expected}{shown}", "mend that line, or take the official file again")


def find_folder(
    root: Path, option: str, given: str | None, usual: Sequence[str], fits: Callable[[Path], bool], what: str
) -> Path:
    """The folder that an option names, or the first usual one that fits."""
    for name in [given] if given is not None else usual:
        folder = root / name
        if folder.is_dir() and fits(folder):
            return folder
    where = given if given is not None else ", ".join(usual)
    raise DataError(f"{root}: no {what} in {where}", f"name their folder with --set {option}=FOLDER")


def find_file(folders: Sequence[Path], names: Sequence[str], option: str) -> Path:
    """The first of the files that is there."""
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    where = ", ".join(str(folder) for folder in folders)
    raise DataError(f"{names[0]}: not found in {where}", f"name it with --set {option}=FILE")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of every line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except OSError as error:
        raise DataError(f"{path}: not readable: {error.strerror or error}", "check the path and its permissions") from error


def read_header(path: Path) -> list[str]:
    """The names of a csv file's columns."""
    _, first = next(read_lines(path), (1, ""))
    return [name.strip() for name in first.split(",")]


def read_table(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and the wanted cells, in that order, of every row of a csv file with a header."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            try:
                header = [name.strip() for name in next(reader, [])]
                if set(wanted) - set(header):
                    raise bad_line(path, 1, f"the columns {','.join(wanted)}", ",".join(header))
                columns = [header.index(name) for name in wanted]
                for cells in reader:
                    if not cells:
                        continue
                    if len(cells) != len(header):
                        raise bad_line(path, reader.line_num, f"{len(header)} columns", ",".join(cells))
                    yield reader.line_num, [cells[column] for column in columns]
            except csv.Error as error:
                raise bad_line(path, reader.line_num, f"csv ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: not readable: {error.strerror or error}", "check the path and its permissions") from error


def whole_number(text: str, path: Path, line: int, name: str, below: int | None = None) -> int:
    """A number of at least 0, and below a limit where one is given."""
    limit = "" if below is None else f" below {below}"
    value = text.strip()
    if not (value.isascii() and value.isdecimal()) or len(value) > 15 or (below is not None and int(value) >= below):
        raise bad_line(path, line, f"{name}: a number{limit}", text)
    return int(value)


def class_numbers(path: Path, rows: Iterator[tuple[int, str, str]]) -> list[str]:
    """Class names in order, of rows (line, number from 0, name) in any order. Every number once, none left out."""
    names: dict[int, str] = {}
    for line, text, name in rows:
        number = whole_number(text, path, line, "a class number")
        if number in names or not name.strip() or name.strip() in names.values():
            raise bad_line(path, line, "every class number and name once", f"{number} {name}")
        names[number] = name.strip()
    if not names or set(names) != set(range(len(names))):
        gap = next(i for i in range(len(names) + 1) if i not in names)
        raise DataError(f"{path}: no class of number {gap}", "take the official file again")
    return [names[number] for number in range(len(names))]


def plain_name(name: str) -> str:
    """A class name as copies may spell it: letters and digits only."""
    return re.sub(r"[\W_]+", "", name).lower()


class Files:
    """The videos below a folder, or the folders of raw frames, by name without ending: each folder is listed once."""

    def __init__(self, folder: Path, frame_names: str | None) -> None:
        self.folder, self.frame_names = folder, frame_names
        self._listed: dict[str, dict[str, str]] = {}
        self._spelt: dict[str, str] | None = None

    def find(self, stem: str) -> str | None:
        """The path below `folder` that a stem such as `class/name` stands for; none: it is not there."""
        inside, _, name = stem.rpartition("/")
        if inside not in self._listed:
            self._listed[inside] = self._list(inside)
        found = self._listed[inside].get(name)
        if found is None:
            return None
        path = f"{inside}/{found}" if inside else found
        return path if self.frame_names is None else f"{path}/{self.frame_names}"

    def spelling(self, name: str) -> str:
        """The sub-folder of a class as this copy spells it (spaces as `_`, no brackets, …); the name itself if there is none."""
        if self._spelt is None:
            folders = [entry.name for entry in _scan(self.folder) if entry.is_dir()]
            self._spelt = {plain_name(folder): folder for folder in folders}
        return self._spelt.get(plain_name(name), name)

    def _list(self, inside: str) -> dict[str, str]:
        if self.frame_names is not None:
            return {entry.name: entry.name for entry in _scan(self.folder / inside) if entry.is_dir()}
        split = (os.path.splitext(entry.name) for entry in _scan(self.folder / inside))  # noqa: PTH122  (100,000 of them)
        return {stem: stem + ending for stem, ending in split if ending.lower() in EXTENSIONS}


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (OSError, ValueError):  # no such folder, or a name with a zero byte
        return []  # what should be in it is missing


def make_catalogue(
    config: DataConfig,
    rows: Rows,
    files: Files,
    classes: dict[str, list[str]],
    find: Callable[[str], str | None] | None = None,
    parts: dict[str, dict[str, NDArray[np.bool_]]] | None = None,
) -> Catalogue:
    """The clips of a list that are there. Says how many are not; DataError where those are more than data.max_missing allows,
    and where a clip has two labels. A line that stands there twice counts once."""
    if not rows.stems:
        raise DataError(f"{rows.source}: the list is empty", "take the official file again")
    kept = _without_repeats(rows)
    where = find or files.find
    found = [where(rows.stems[i]) for i in kept]
    missing = [i for i, path in zip(kept, found, strict=True) if path is None]
    if missing:
        example = files.folder / rows.stems[missing[0]]
        if len(missing) == len(kept):
            raise DataError(
                f"{rows.source}: none of its videos is there, for example {example}", "check data.root and data.videos"
            )
        if len(missing) > config.max_missing * len(kept):
            raise DataError(
                f"{rows.source}: {len(missing)} of {len(kept)} videos are missing, more than data.max_missing = "
                f"{config.max_missing:g} allows, for example {example}",
                "complete the copy, or raise data.max_missing",
            )
        say(f"{rows.source}: {len(missing)} of {len(kept)} videos are missing and left out, for example {example}")
    at = np.array([i for i, path in zip(kept, found, strict=True) if path is not None])
    texts = ("ids",)  # as bytes: a third of numpy's text, and any name fits
    more = {
        name: np.asarray([os.fsencode(value) for value in values] if name in texts else values)[at]
        for name, values in rows.more.items()
    }
    if "group" in more:
        more["groups"] = np.unique(more.pop("group"), return_inverse=True)[1].reshape(-1)
    if files.frame_names is not None and "frames" not in more:
        more["frames"] = np.zeros((len(at), 2), np.int64)
    if files.frame_names is not None and "rates" not in more and config.frame_rate:
        more["rates"] = np.full(len(at), config.frame_rate)
    labels: dict[str, Ints] = {head: np.array(values, np.int64)[at] for head, values in rows.labels.items()}
    kept_parts = {part: {head: mask[at] for head, mask in masks.items()} for part, masks in (parts or {}).items()}
    paths = [path for path in found if path is not None]
    gone = [str(files.folder / rows.stems[i]) for i in missing]
    return Catalogue(config.kind, files.folder, paths, labels, classes, parts=kept_parts, missing=gone, **more)


def _without_repeats(rows: Rows) -> list[int]:
    """The first of every clip (path, part of it, and id, where it has one). Says how many lines were repeats. DataError
    where labels differ."""
    first: dict[object, int] = {}
    kept = []
    parts = [rows.more[name] for name in ("times", "frames", "ids") if name in rows.more]
    for i, stem in enumerate(rows.stems):
        key: object = (stem, *(part[i] for part in parts)) if parts else stem
        j = first.setdefault(key, i)
        if j == i:
            kept.append(i)
        elif any(values[i] != values[j] for values in rows.labels.values()):
            raise DataError(
                f"{rows.source}:{rows.lines[i]}: {stem} has another label there than in line {rows.lines[j]}",
                "remove one of the lines",
            )
    if len(kept) < len(rows.stems):
        say(f"{rows.source}: {len(rows.stems) - len(kept)} lines stand there twice; each clip counts once")
    return kept
