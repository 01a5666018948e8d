"""EPIC-KITCHENS-100 by its official csv of 15 columns: two heads, verb (97 classes) and noun (300). No torch.

The class counts come from the class files. Clips are cut out of whole videos (`P01/videos/P01_01.MP4`) by timestamp, or, with
data.frame_names, are raw frames (`P01/rgb_frames/P01_01/frame_0000000001.jpg`) from start_frame to stop_frame. The list of test
segments (`data.val=EPIC_100_test_timestamps.csv`) has no labels: they are -1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.data.catalogue import Catalogue, Ints, Split, need_root
from dtkd_edge.data.official import (
    Files,
    Rows,
    bad_line,
    class_numbers,
    find_file,
    find_folder,
    make_catalogue,
    read_header,
    read_table,
    whole_number,
)
from dtkd_edge.errors import DataError
from dtkd_edge.recipe import DataConfig

COLUMNS = (
    "narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "start_frame", "stop_frame",
)  # fmt: skip
LABELS = ("verb_class", "noun_class")
LISTS = ("epic-kitchens-100-annotations", "annotations", ".")
VIDEOS = ("{p}/videos/{v}", "videos/{p}/{v}", "videos/{v}", "{p}/{v}", "{v}")
FRAMES = ("{p}/rgb_frames/{v}", "rgb_frames/{p}/{v}", "rgb_frames/{v}", "frames/{p}/{v}", "frames/{v}", "{p}/{v}", "{v}")
HEADS = ("verb", "noun")
UNSEEN = ("P18", "P32")  # participants of the validation set that are not in the training set
CLOCK = re.compile(r"(\d{1,3}):([0-5]\d):([0-5]\d(?:\.\d+)?)")


def open_epic100(config: DataConfig, split: Split) -> Catalogue:
    """The validation side has parts that are scored apart: `unseen` (participants) and `tail` (classes)."""
    root = need_root(config)
    lists = find_folder(
        root, "data.annotations", config.annotations, LISTS, lambda f: (f / "EPIC_100_verb_classes.csv").is_file(), "class files"
    )
    classes = {head: _classes(lists, head) for head in HEADS}
    given, usual = (config.train, "EPIC_100_train.csv") if split == "train" else (config.val, "EPIC_100_validation.csv")
    source = find_file([lists, root], [given or usual], f"data.{split}")
    rows = Rows(source)
    people: list[str] = []
    raw = config.frame_names is not None
    rates: dict[str, tuple[float, float]] = {}
    labelled = split == "train" or bool({*LABELS} & {*read_header(source)})
    columns = (*COLUMNS, *LABELS) if labelled else COLUMNS
    for line, (clip, person, video, start, stop, first, last, *numbers) in read_table(source, columns):
        if not person or not video or "/" in person + video:
            raise bad_line(source, line, "participant_id and video_id", f"{person},{video}")
        times = (_clock(start, source, line), _clock(stop, source, line))
        if times[1] <= times[0]:
            raise bad_line(source, line, "stop_timestamp after start_timestamp", f"{start},{stop}")
        labels = dict.fromkeys(HEADS, -1)
        for head, number in zip(HEADS, numbers, strict=False):
            labels[head] = whole_number(number, source, line, f"{head}_class", len(classes[head]))
        people.append(person)
        if raw:
            one, end = (whole_number(n, source, line, "start_frame and stop_frame") for n in (first, last))
            if end < one:
                raise bad_line(source, line, "stop_frame not before start_frame", f"{first},{last}")
            rates[video] = max(rates.get(video, (0.0, 0.0)), (times[1], end / times[1]))  # the latest row tells it best
            one = max(one, 1)
            rows.add(line, f"{person}/{video}", labels, ids=clip, frames=(one, max(end - one + 1, 1)), video=video)
        else:
            rows.add(line, f"{person}/{video}", labels, ids=clip, times=times)
    if raw:
        rows.more["rates"] = [config.frame_rate or rates[video][1] for video in rows.more.pop("video")]
    if not rows.stems:
        raise DataError(f"{source}: the list is empty", "take the official file again")
    files, layout = _layout(root, config, rows)
    places = {stem: files.find(_place(layout, stem)) for stem in dict.fromkeys(rows.stems)}
    return make_catalogue(config, rows, files, classes, places.get, _parts(lists, people, rows, classes) if labelled else {})


def _classes(lists: Path, head: str) -> list[str]:
    path = find_file([lists], [f"EPIC_100_{head}_classes.csv", f"EPIC_100_{head}_classes_v2.csv"], "data.annotations")

    def numbered() -> Iterator[tuple[int, str, str]]:
        for line, (number, name) in read_table(path, ("id", "key")):
            yield line, number, name

    return class_numbers(path, numbered())


def _clock(text: str, source: Path, line: int) -> float:
    """Seconds of HH:mm:ss.SSS."""
    found = CLOCK.fullmatch(text.strip())
    if found is None:
        raise bad_line(source, line, "a time of the form 00:01:02.345", text)
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])


def _place(layout: str, stem: str) -> str:
    person, _, video = stem.partition("/")
    return layout.format(p=person, v=video)


def _layout(root: Path, config: DataConfig, rows: Rows) -> tuple[Files, str]:
    """Where videos (or frames) lie: the layout in which most of the first ones are found."""
    bases = [root / config.videos] if config.videos else [root, root / "EPIC-KITCHENS"]
    sample = list(dict.fromkeys(rows.stems))[:20]
    choices = [(Files(base, config.frame_names), form) for base in bases for form in (FRAMES if config.frame_names else VIDEOS)]
    return max(choices, key=lambda choice: sum(choice[0].find(_place(choice[1], stem)) is not None for stem in sample))


def _parts(lists: Path, people: list[str], rows: Rows, classes: dict[str, list[str]]) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """As the official evaluation has them; a tail action has a tail verb or a tail noun."""
    labels: dict[str, Ints] = {head: np.array(values) for head, values in rows.labels.items()}
    parts: dict[str, dict[str, NDArray[np.bool_]]] = {}
    listed = lists / "EPIC_100_unseen_participant_ids_validation.csv"
    unseen = [person for _, (person,) in read_table(listed, ("participant_id",))] if listed.is_file() else list(UNSEEN)
    mask = np.isin(people, unseen)
    if mask.any():
        parts["unseen"] = dict.fromkeys((*HEADS, "action"), mask)
    tails = {head: lists / f"EPIC_100_tail_{head}s.csv" for head in HEADS}
    if all(path.is_file() for path in tails.values()):
        tail = {}
        for head, path in tails.items():
            lines = read_table(path, (head,))
            numbers = [whole_number(number, path, line, f"a {head} class", len(classes[head])) for line, (number,) in lines]
            tail[head] = np.isin(labels[head], numbers)
        parts["tail"] = {**tail, "action": tail["verb"] | tail["noun"]}
    return parts
