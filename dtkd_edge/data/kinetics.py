"""Kinetics-400, -600 and -700 by their official csv: `label,youtube_id,time_start,time_end,split` (400 has `is_cc` too).

Clips are `{youtube_id}_{start:06d}_{end:06d}.mp4` in class folders, whose names copies spell in several ways, or in one folder.
Every copy lacks videos that have left the web since: they are counted and left out. No torch.
"""

from __future__ import annotations

from pathlib import Path

from dtkd_edge.console import say
from dtkd_edge.data.catalogue import Catalogue, Split, need_root
from dtkd_edge.data.lists import HEAD, listed_classes
from dtkd_edge.data.official import Files, Rows, bad_line, find_file, find_folder, make_catalogue, read_table
from dtkd_edge.errors import DataError
from dtkd_edge.recipe import DataConfig

COLUMNS = ("label", "youtube_id", "time_start", "time_end")
SIDES = {"train": ("train",), "val": ("val", "validate", "validation")}


def open_kinetics(config: DataConfig, split: Split) -> Catalogue:
    """The classes are those of classes.txt where it is there, else the training list's labels in alphabetical order."""
    root = need_root(config)
    number = config.kind.removeprefix("kinetics")
    folders = [root / config.annotations] if config.annotations else [root, root / "annotations", root / config.kind]

    def csv_of(side: Split) -> Path:
        given = config.train if side == "train" else config.val
        forms = (
            "{}.csv",
            f"kinetics{number}_{{}}.csv",
            f"kinetics-{number}_{{}}.csv",
            f"kinetics_{number}_{{}}.csv",
            f"k{number}_{{}}.csv",
        )
        usual = [form.format(name) for name in SIDES[side] for form in forms]
        return find_file(folders, [given] if given else usual, f"data.{side}")

    source, training = csv_of(split), csv_of("train")
    names = listed_classes(root)
    if names is None:
        names = sorted({label for _, (label,) in read_table(training, ("label",))})
        if len(names) != int(number):
            say(f"{training}: {len(names)} classes; the whole of {config.kind} has {number}")
    known = {name: i for i, name in enumerate(names)}
    files = Files(_videos(root, config, split), config.frame_names)
    rows = Rows(source)
    spelling = {name: files.spelling(name) for name in names}
    for line, (label, video, start, end) in read_table(source, COLUMNS):
        if label not in known:
            raise bad_line(source, line, f"one of the {len(names)} classes of the training list", label)
        if not video or "/" in video:
            raise bad_line(source, line, "a youtube_id", video)
        rows.add(
            line,
            f"{spelling[label]}/{video}_{_second(start, source, line):06d}_{_second(end, source, line):06d}",
            {HEAD: known[label]},
        )

    def find(stem: str) -> str | None:
        return files.find(stem) or files.find(stem.rpartition("/")[2])

    return make_catalogue(config, rows, files, {HEAD: names}, find)


def _second(text: str, source: Path, line: int) -> int:
    try:
        value = float(text)  # some copies of the lists have 12.0
        if not 0 <= value < 1e6:
            raise ValueError
    except ValueError:
        raise bad_line(source, line, "time_start and time_end in seconds", text) from None
    return int(value)


def _videos(root: Path, config: DataConfig, split: Split) -> Path:
    """The folder of one side's clips; data.videos may hold `{split}`."""
    if config.videos is not None:
        folder = root / config.videos.replace("{split}", split)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder", "check data.videos")
        return folder
    kinds = ("rawframes",) if config.frame_names else ("videos",)
    usual = [
        pattern.format(side)
        for side in SIDES[split]
        for kind in kinds
        for pattern in (f"{kind}_{{}}", f"{kind}/{{}}", "{}", "{}_256")
    ]
    return find_folder(root, "data.videos", None, [*usual, *kinds], lambda folder: True, "folder of videos")
