"""Data sets given by folders. No torch.

root/CLASS/clip.mp4                       a share is held out for validation
root/train/CLASS/clip.mp4, root/val/…     as it stands (val, valid, validation or test)
root/train.csv [root/val.csv]             lists decide (see lists.py), wherever the videos lie below root
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dtkd_edge.data.catalogue import Catalogue, Split
from dtkd_edge.data.lists import HEAD, read_lists, two_sides
from dtkd_edge.errors import DataError
from dtkd_edge.recipe import DataConfig

EXTENSIONS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts", ".3gp", ".ogv")
VALIDATION = ("val", "valid", "validation", "test")


def open_folder(config: DataConfig, split: Split) -> Catalogue:
    """One side of a folder. Raises DataError for what is missing or not readable."""
    whole, val, _ = _sides(config)
    return two_sides(whole, val, config)[split]


def open_test_folder(config: DataConfig, split: Split) -> Catalogue:
    """What `--data FOLDER` means: every clip is scored, or the validation side where the folder has one of its own."""
    whole, val, place = _sides(config)
    if val is None or split == "train":
        return whole
    val.notes = (*val.notes, f"{config.root}: only its validation side is scored: {place}")
    return val


def _sides(config: DataConfig) -> tuple[Catalogue, Catalogue | None, Path]:
    """All clips to train on; those of the validation side, where the folder has one; and the place of the latter."""
    root = config.folder
    if root is None:
        raise DataError("data.root: kind folder needs the folder of the data set", "--set data.root=FOLDER")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder", "check data.root")
    train_list = root / (config.train or "train.csv")
    if config.train or train_list.is_file():
        val_list = root / (config.val or "val.csv")
        return *read_lists("folder", root, train_list, val_list if config.val or val_list.is_file() else None), val_list
    train = root / "train"
    if not train.is_dir():
        return _scan("folder", root), None, root
    val = next((root / name for name in VALIDATION if (root / name).is_dir()), None)
    whole = _scan("folder", train)
    return (whole, None, train) if val is None else (whole, _scan("folder", val, whole.classes[HEAD]), val)


def _scan(name: str, root: Path, names: list[str] | None = None) -> Catalogue:
    """Every video below each class folder; sub-folders of a class belong to it."""
    found = sorted(entry.name for entry in _entries(root) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise DataError(f"{root}: no class folders", "expected CLASS/clip.mp4, or train.csv with path,label lines")
    known = found if names is None else names
    strange = sorted(set(found) - set(known))
    if strange:
        raise DataError(f"{root / strange[0]}: a class that the training folder does not have", "add it there, or remove it")
    paths: list[str] = []
    labels: list[int] = []
    for label in found:
        clips = sorted(_videos(root / label, label))
        if not clips:
            raise DataError(f"{root / label}: a class with no clip", f"expected files such as {', '.join(EXTENSIONS[:4])}")
        paths += clips
        labels += [known.index(label)] * len(clips)
    return Catalogue(name, root, paths, {HEAD: np.array(labels)}, {HEAD: known})


def _videos(folder: Path, inside: str) -> list[str]:
    clips = []
    for entry in _entries(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            clips += _videos(folder / entry.name, f"{inside}/{entry.name}")
        elif Path(entry.name).suffix.lower() in EXTENSIONS:
            clips.append(f"{inside}/{entry.name}")
    return clips


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"{folder}: not readable: {error.strerror or error}", "check its permissions") from error
