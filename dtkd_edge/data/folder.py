"""Data sets given by folders. No torch.

root/CLASS/clip.mp4                       a share is held out for validation
root/train/CLASS/clip.mp4, root/val/…     as it stands (val, valid, validation or test; capitals do not matter)
root/train.csv [root/val.csv]             lists decide (see lists.py), wherever the videos lie below root
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import numpy as np

from dtkd_edge.console import counted
from dtkd_edge.data.catalogue import Catalogue, Split, need_root
from dtkd_edge.data.lists import HEAD, read_lists, two_sides
from dtkd_edge.data.motion import DESCRIPTION
from dtkd_edge.decoder import EXTENSIONS, UNREAD, into_mp4
from dtkd_edge.errors import DataError
from dtkd_edge.recipe import DataConfig

VALIDATION = ("val", "valid", "validation", "test")


def open_folder(config: DataConfig, split: Split) -> Catalogue:
    """One side of a folder. Raises DataError for what is missing or not readable."""
    whole, val, place = _sides(config)
    if not config.all_scored:
        return two_sides(whole, val, config)[split]
    if val is None or split == "train":
        return whole
    val.notes = (*val.notes, f"{config.root}: only its validation side is scored: {place}")
    return val


def _sides(config: DataConfig) -> tuple[Catalogue, Catalogue | None, Path]:
    """All clips to train on; those of the validation side, where the folder has one; and the place of the latter."""
    root = need_root(config)
    train_list = root / (config.train or "train.csv")
    if config.train or train_list.is_file():
        val_list = root / (config.val or "val.csv")
        return *read_lists("folder", root, train_list, val_list if config.val or val_list.is_file() else None), val_list
    train, val = _side(root, "train"), _side(root, *VALIDATION)
    if val is None:
        return _scan("folder", train or root), None, root
    if train is None and not config.all_scored:
        raise DataError(
            f"{val}: a folder for validation, and {root} has no train folder beside it",
            f"move the class folders to train on into {root / 'train'}, or rename {val.name} if it is a class",
        )
    whole = _scan("folder", train or val)
    return whole, _scan("folder", val, whole.classes[HEAD]), val


def _side(root: Path, *names: str) -> Path | None:
    """The folder of one side: the first of those names, in whatever case, that has folders in it (a class may be called test)."""
    found = {entry.name.lower(): root / entry.name for entry in sorted(_entries(root), key=lambda e: e.name) if _is_folder(entry)}
    return next((found[name] for name in names if name in found and _folders(found[name])), None)


def require_classes(train: Catalogue) -> None:
    """DataError where there is one class only: nothing can be learnt from that, and mostly data.root is a level too high."""
    if any(len(names) > 1 for names in train.classes.values()):
        return
    name = next(iter(train.classes.values()))[0]
    hint = "training needs two classes or more: for one action, a second class with everything else"
    if train.name == "folder" and isinstance(train.root, Path) and (below := _classes_below(train.root / name)) is not None:
        hint = f"did you mean --set data.root={shlex.quote(str(below))} ?"
    raise DataError(f"{train.root}: one class only, {name!r}", hint)


def refuse_own_clips(root: Path, kind: str) -> None:
    """DataError where a generated set is asked for in a folder of somebody's own clips: the recipe was forgotten."""
    if not root.is_dir() or (root / DESCRIPTION).exists():
        return
    if (root / "train.csv").is_file() or _videos(root, "", set(), []):
        where = f"--set data.root={shlex.quote(str(root))}"
        raise DataError(
            f"{root}: holds clips, and data.kind is {kind}, a set that is generated",
            f"name the recipe for your own clips: dtkd-edge data check folder {where}, dtkd-edge train folder {where}",
        )


def _classes_below(folder: Path) -> Path | None:
    """The folder that has the class folders, where `folder` leads to it and has no clips of its own."""
    visited: set[tuple[int, int]] = set()
    while folder.is_dir() and _first_visit(folder, visited) and not any(map(_is_video, _entries(folder))):
        below = _folders(folder)
        if len(below) != 1:
            return folder if below else None
        folder /= below[0]
    return None


def _scan(name: str, root: Path, names: list[str] | None = None) -> Catalogue:
    """Every video below each class folder; sub-folders of a class belong to it."""
    found = _folders(root)
    if not found:
        raise DataError(f"{root}: no class folders", "expected CLASS/clip.mp4, or train.csv with path,label lines")
    known = found if names is None else names
    strange = sorted(set(found) - set(known))
    if strange:
        raise DataError(f"{root / strange[0]}: a class that the training folder does not have", "add it there, or remove it")
    paths: list[str] = []
    labels: list[int] = []
    unread: list[str] = []
    for label in found:
        visited: set[tuple[int, int]] = set()
        _first_visit(root, visited)
        clips = sorted(_videos(root / label, label, visited, unread))
        if not clips:
            expected = f"expected files such as {', '.join(EXTENSIONS[:4])}"
            raise DataError(f"{root / label}: a class with no clip", into_mp4(unread[-1]) if unread else expected)
        paths += clips
        labels += [known.index(label)] * len(clips)
    notes = []
    if unread:
        notes = [f"{root}: {counted(len(unread), 'file')} passed over: {', '.join(sorted(set(unread)))} ({into_mp4(unread[0])})"]
    return Catalogue(name, root, paths, {HEAD: np.array(labels)}, {HEAD: known}, notes=notes)


def _videos(folder: Path, inside: str, visited: set[tuple[int, int]], unread: list[str]) -> list[str]:
    """Paths below `folder`, from the class folder on; endings of videos that are not read go to `unread`. No folder is gone
    through twice: a link may lead back up."""
    clips: list[str] = []
    if not _first_visit(folder, visited):
        return clips
    for entry in _entries(folder):
        if _is_folder(entry):
            clips += _videos(folder / entry.name, f"{inside}/{entry.name}", visited, unread)
        elif _is_video(entry):
            clips.append(f"{inside}/{entry.name}")
        elif not entry.name.startswith(".") and (ending := Path(entry.name).suffix.lower()) in UNREAD:
            unread.append(ending)
    return clips


def _first_visit(folder: Path, visited: set[tuple[int, int]]) -> bool:
    found = folder.stat()
    key = (found.st_dev, found.st_ino)
    new = key not in visited
    visited.add(key)
    return new


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_video(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and Path(entry.name).suffix.lower() in EXTENSIONS


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if _is_folder(entry))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"{folder}: not readable: {error.strerror or error}", "check its permissions") from error
