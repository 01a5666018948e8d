"""Lists as mmaction2 and TSM use them: `path label` (video-list) and `dir total_frames label` (frame-list). No torch.

Lines are split on the last spaces, so paths may hold spaces. Labels are numbers; `classes.txt` or mmaction2's `label_map*.txt`
beside the lists or in the root names them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dtkd_edge.data.catalogue import FRAME_RATE, Catalogue, Split
from dtkd_edge.data.lists import HEAD, find_list, listed_classes, some_exist, split_off
from dtkd_edge.data.official import bad_line, read_lines, whole_number
from dtkd_edge.errors import DataError
from dtkd_edge.recipe import DataConfig

FRAME_NAMES = "img_%05d.jpg"


def open_video_list(config: DataConfig, split: Split) -> Catalogue:
    return _open(config, split, raw_frames=False)


def open_frame_list(config: DataConfig, split: Split) -> Catalogue:
    """Frames are named data.frame_names (`img_%05d.jpg`), counted from data.first_frame, at data.frame_rate."""
    return _open(config, split, raw_frames=True)


def _open(config: DataConfig, split: Split, raw_frames: bool) -> Catalogue:
    if config.train is None:
        raise DataError(f"data.train: kind {config.kind} needs a training list", "--set data.train=LIST.txt")
    train = find_list(config.folder, config.train, "data.train")
    base = config.folder or train.parent
    folder = base / config.videos if config.videos else base
    names = listed_classes(train.parent) or listed_classes(base)
    if split == "train" or config.val is None:
        whole = _read(config, train, folder, names, raw_frames)
        some_exist(whole, train)
        return whole if config.val is not None else split_off(whole, config)[split]
    if names is None:
        names = _read(config, train, folder, None, raw_frames).classes[HEAD]
    return _read(config, find_list(config.folder, config.val, "data.val"), folder, names, raw_frames)


def _read(config: DataConfig, source: Path, folder: Path, names: list[str] | None, raw_frames: bool) -> Catalogue:
    paths: list[str] = []
    labels: list[int] = []
    frames: list[tuple[int, int]] = []
    seen: dict[str, int] = {}
    ending = f"/{config.frame_names or FRAME_NAMES}" if raw_frames else ""
    form = "`dir total_frames label`" if raw_frames else "`path label`"
    for line, text in read_lines(source):
        parts = text.strip().rsplit(None, 2 if raw_frames else 1)
        if len(parts) != (3 if raw_frames else 2):
            raise bad_line(source, line, form, text)
        path = parts[0]
        label = whole_number(parts[-1], source, line, f"{form}, label", len(names) if names else 100_000)
        if raw_frames:
            total = whole_number(parts[1], source, line, f"{form}, total_frames")
            if not total:
                raise bad_line(source, line, "total_frames of at least 1", text)
            frames.append((config.first_frame, total))
        if path in seen:
            raise DataError(f"{source}:{line}: {path} stands in line {seen[path]} already", "remove one of the lines")
        seen[path] = line
        paths.append(path + ending)
        labels.append(label)
    if not paths:
        raise DataError(f"{source}: the list is empty", f"expected lines of {form}")
    if names is None:
        names = [str(number) for number in range(max(labels) + 1)]
    rates = np.full(len(paths), config.frame_rate or FRAME_RATE) if raw_frames else None
    return Catalogue(
        config.kind,
        folder,
        paths,
        {HEAD: np.array(labels)},
        {HEAD: names},
        frames=np.array(frames, np.int64) if raw_frames else None,
        rates=rates,
    )
