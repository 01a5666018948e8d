"""UCF101 by its official lists: classInd.txt, trainlist0N.txt (`Class/name.avi NUMBER`), testlist0N.txt (`Class/name.avi`).

N is `data.split`. The group in a name, `v_Class_g08_c01`, is the source video; official splits never part one. No torch.
"""

from __future__ import annotations

import re

from dtkd_edge.data.catalogue import Catalogue, Split, need_root
from dtkd_edge.data.lists import HEAD
from dtkd_edge.data.official import (
    Files,
    Rows,
    bad_line,
    class_numbers,
    find_file,
    find_folder,
    make_catalogue,
    read_lines,
    whole_number,
)
from dtkd_edge.recipe import DataConfig

LISTS = ("ucfTrainTestlist", "annotations", ".")
VIDEOS = ("UCF-101", "videos", "rawframes", ".")


def open_ucf101(config: DataConfig, split: Split) -> Catalogue:
    """Official split `data.split`; val is its test side."""
    root = need_root(config)
    lists = find_folder(
        root, "data.annotations", config.annotations, LISTS, lambda f: (f / "classInd.txt").is_file(), "classInd.txt"
    )
    index = lists / "classInd.txt"

    def numbered() -> list[tuple[int, str, str]]:
        found = []
        for line, text in read_lines(index):
            number, _, name = text.strip().partition(" ")
            value = whole_number(number, index, line, "`NUMBER Class` counting from 1")
            if value < 1:
                raise bad_line(index, line, "`NUMBER Class` counting from 1", text)
            found.append((line, str(value - 1), name))
        return found

    names = class_numbers(index, iter(numbered()))
    known = {name: number for number, name in enumerate(names)}
    source = find_file([lists], [f"{'train' if split == 'train' else 'test'}list{config.split:02d}.txt"], "data.annotations")
    videos = find_folder(
        root, "data.videos", config.videos, VIDEOS, lambda f: any((f / n).is_dir() for n in names), "class folders with videos"
    )
    rows = Rows(source)
    for line, text in read_lines(source):
        path, _, number = text.strip().rpartition(" ")
        if split == "val" and not path:
            path, number = number, ""
        name, _, file = path.partition("/")
        if not file or "/" in file:
            raise bad_line(source, line, "`Class/name.avi NUMBER`" if split == "train" else "`Class/name.avi`", text)
        if name not in known:
            raise bad_line(source, line, f"one of the {len(names)} classes of {index.name}", name)
        if split == "train" and whole_number(number, source, line, "a class number") != known[name] + 1:
            raise bad_line(source, line, f"class number {known[name] + 1}, that of {name} in {index.name}", text)
        stem = file.rpartition(".")[0] or file
        group = re.sub(r"_c\d+$", "", stem)
        rows.add(line, f"{name}/{stem}", {HEAD: known[name]}, group=group)
    return make_catalogue(config, rows, Files(videos, config.frame_names), {HEAD: names})
