"""HMDB51 by its official split files: `{class}_test_split{1,2,3}.txt`, lines `name.avi FLAG`. No torch.

FLAG 1 is training, 2 test, 0 in neither: 70 and 30 clips of each of the 51 classes. Results are given per split, and as the mean
of the three. Names hold `[ ] ! ; & ( )`: nothing here globs.
"""

from __future__ import annotations

from dtkd_edge.data.catalogue import Catalogue, Split, need_root
from dtkd_edge.data.lists import HEAD
from dtkd_edge.data.official import Files, Rows, bad_line, find_folder, make_catalogue, read_lines
from dtkd_edge.recipe import DataConfig

LISTS = ("testTrainMulti_7030_splits", "annotations", "splits", ".")
VIDEOS = ("videos", "hmdb51_org", "hmdb51", "rawframes", ".")
FLAGS = {"train": "1", "val": "2"}


def open_hmdb51(config: DataConfig, split: Split) -> Catalogue:
    """Official split `data.split`; val is its test side."""
    root = need_root(config)
    ending = f"_test_split{config.split}.txt"
    lists = find_folder(
        root,
        "data.annotations",
        config.annotations,
        LISTS,
        lambda folder: any(file.name.endswith(ending) for file in folder.iterdir()),
        f"split files CLASS{ending}",
    )
    names = sorted(file.name.removesuffix(ending) for file in lists.iterdir() if file.name.endswith(ending))
    videos = find_folder(
        root,
        "data.videos",
        config.videos,
        VIDEOS,
        lambda folder: any((folder / name).is_dir() for name in names),
        "class folders with videos",
    )
    rows = Rows(lists / f"CLASS{ending}")
    for number, name in enumerate(names):
        source = lists / f"{name}{ending}"
        flags: dict[str, tuple[str, int]] = {}
        for line, text in read_lines(source):
            file, _, flag = text.strip().rpartition(" ")
            if flag not in ("0", "1", "2") or not file.strip():
                raise bad_line(source, line, "`name.avi FLAG` with a flag of 0, 1 or 2", text)
            before = flags.setdefault(file, (flag, line))
            if before[0] != flag:
                raise bad_line(source, line, f"each clip once, {file} has another flag in line {before[1]}", text)
            if flag == FLAGS[split]:
                rows.add(line, f"{name}/{file.strip().rpartition('.')[0] or file.strip()}", {HEAD: number})
    return make_catalogue(config, rows, Files(videos, config.frame_names), {HEAD: names})
