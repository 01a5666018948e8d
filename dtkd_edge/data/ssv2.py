"""Something-Something V2 by its official JSON: labels (template → number), train and validation (id, template, placeholders).

A label is the template without its brackets: "Holding [something]" is class "Holding something". Videos are `{id}.webm` in one
folder; raw frames are folders of those ids. Left and right mean different things here: no flips. No torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dtkd_edge.data.catalogue import Catalogue, Split, need_root
from dtkd_edge.data.lists import HEAD
from dtkd_edge.data.official import Files, Rows, class_numbers, find_file, find_folder, make_catalogue
from dtkd_edge.errors import DataError
from dtkd_edge.recipe import DataConfig

PREFIX = "something-something-v2-"
VIDEOS = ("20bn-something-something-v2", "something-something-v2", "videos", "rawframes", "sthv2", ".")


def open_ssv2(config: DataConfig, split: Split) -> Catalogue:
    root = need_root(config)
    folders = [root / config.annotations] if config.annotations else [root, root / "labels", root / "annotations"]
    listing = find_file(folders, [f"{PREFIX}labels.json", "labels.json"], "data.annotations")
    classes = _read(listing, None)
    if not isinstance(classes, dict):
        raise DataError(f"{listing}:1: expected an object of class name and number", "take the official file again")
    names = class_numbers(listing, ((1, str(number), name) for name, number in classes.items()))
    known = {name: number for number, name in enumerate(names)}
    side, given = ("train", config.train) if split == "train" else ("validation", config.val)
    source = find_file(folders, [given] if given else [f"{PREFIX}{side}.json", f"{side}.json"], f"data.{split}")
    entries = _read(source, _clip)
    if not isinstance(entries, list):
        raise DataError(f"{source}:1: expected a list of clips", "take the official file again")
    rows = Rows(source)
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, tuple) or not all(isinstance(value, str) and value for value in entry):
            raise _bad(source, number, "expected an object with id and template")
        video, template = entry
        label = template.replace("[", "").replace("]", "")
        if not video.isdecimal():
            raise _bad(source, number, f"expected a numeric id; found {video[:40]!r}")
        if label not in known:
            raise _bad(source, number, f"{template!r} is not one of the {len(names)} classes of {listing.name}")
        rows.add(number, video, {HEAD: known[label]})
    videos = find_folder(root, "data.videos", config.videos, VIDEOS, lambda folder: True, "folder of videos")
    return make_catalogue(config, rows, Files(videos, config.frame_names), {HEAD: names})


def _clip(pairs: list[tuple[str, Any]]) -> tuple[Any, Any]:
    """Of each of 200,000 entries, only what is needed is kept: id (some copies have numbers) and template."""
    entry = dict(pairs)
    video = entry.get("id")
    return str(video) if isinstance(video, int) else video, entry.get("template")


def _read(path: Path, keep: Any) -> Any:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            return json.load(stream, object_pairs_hook=keep)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}", "take the official file again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable: {error}", "take the official file again") from error


def _bad(path: Path, number: int, what: str) -> DataError:
    return DataError(f"{path}: entry {number}: {what}", "mend that entry, or take the official file again")
