"""Data sets in tar shards (WebDataset's layout) with an index beside them, in a folder or on a web server. No torch.

ROOT/train-000000.tar, …   KEY.mp4, KEY.json (labels and class names), and KEY.cls (class number) where there is one head
ROOT/index.json            for every shard its bytes and sha256, for every clip where it lies in there, and its labels

The index gives random access: a clip's bytes are read from its place in the shard, from a file or by an HTTP Range request. So
clips have numbers, as in every other kind, and training shuffles them, shares them out to ranks and resumes as everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dtkd_edge.console import progress
from dtkd_edge.data.catalogue import Catalogue, Split
from dtkd_edge.data.members import Place, Shard, fetch, join, shown
from dtkd_edge.errors import DataError
from dtkd_edge.files import sha256
from dtkd_edge.recipe import DataConfig

INDEX = "index.json"
VERSION = 1
SAMPLE = 16  # shards of a URL that are looked for when the set is opened; of a folder all are
REQUESTS = 16  # at a time
BLOCK = 8 << 20
AGAIN = "take the index and the shards of one and the same pack"

Count = Annotated[int, Field(ge=0, lt=2**62)]
Group = Annotated[int, Field(gt=-(2**62), lt=2**62)]


class Entry(BaseModel):
    """One shard and its clips: equally long columns. numbers: a clip's place in its split before the shards were shuffled."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[^/\x00]+\.tar$")
    split: Split
    size: Count
    sha256: str = Field(pattern="^[0-9a-f]{64}$|^$")
    files: list[str]
    offsets: list[Count]
    sizes: list[Count]
    numbers: list[Count]
    labels: dict[str, list[Count]]
    groups: list[Group] | None = None
    ids: list[str] | None = None
    parts: dict[str, dict[str, list[bool]]] = {}
    broken: dict[str, str] = {}
    plan: str = ""

    def columns(self) -> Iterable[tuple[str, list[int] | list[str] | list[bool]]]:
        yield from (("offsets", self.offsets), ("sizes", self.sizes), ("numbers", self.numbers))
        yield from ((f"labels.{head}", values) for head, values in self.labels.items())
        yield from ((f"parts.{part}.{head}", v) for part, masks in self.parts.items() for head, v in masks.items())
        yield from ((name, v) for name, v in (("groups", self.groups), ("ids", self.ids)) if v is not None)


class Index(BaseModel):
    """What index.json holds."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["dtkd-edge shards"] = "dtkd-edge shards"
    version: int = VERSION
    kind: str = Field(description="of the data set that was packed")
    classes: dict[str, list[str]]
    shards: list[Entry]


def open_shards(config: DataConfig, split: Split) -> Catalogue:
    """One side of a packed set, in the order that it had before. DataError for an index or shards that do not fit."""
    root = config.root
    if root is None:
        raise DataError("data.root: kind shards needs the folder or URL of the shards", "--set data.root=FOLDER or https://…")
    index = read_index(root)
    entries = [entry for entry in index.shards if entry.split == split]
    if not entries:
        raise DataError(f"{shown(join(root, INDEX))}: no {split} shards", "pack again, with clips on both sides")
    shards = [Shard(join(root, entry.name), entry.size, entry.sha256) for entry in entries]
    look(
        shards if isinstance(root, Path) else [shards[i] for i in np.unique(np.linspace(0, len(shards) - 1, SAMPLE).astype(int))]
    )
    order = np.argsort(np.concatenate([entry.numbers for entry in entries]), kind="stable")
    places = [(number, *place) for number, e in enumerate(entries) for place in zip(e.offsets, e.sizes, strict=True)]
    paths = np.array([f"{entry.name}/{file}".encode() for entry in entries for file in entry.files])
    first = entries[0]
    return Catalogue(
        "shards",
        root if isinstance(root, Path) else shown(root),
        paths[order],
        {head: np.concatenate([entry.labels[head] for entry in entries])[order] for head in index.classes},
        index.classes,
        groups=None if first.groups is None else np.concatenate([e.groups or [] for e in entries])[order].astype(np.int64),
        ids=None if first.ids is None else np.array([i.encode() for e in entries for i in e.ids or []])[order],
        parts={
            part: {head: np.concatenate([e.parts[part][head] for e in entries])[order].astype(bool) for head in masks}
            for part, masks in first.parts.items()
        },
        members=np.array(places, np.int64)[order],
        shards=shards,
    )


def read_index(root: Place) -> Index:
    """The checked index. Raises DataError for one that is missing, unreadable, of another version or at odds with itself."""
    place = join(root, INDEX)
    name = shown(place)
    if isinstance(place, Path):
        try:
            raw = place.read_bytes()
        except OSError as error:
            hint = "pack with: dtkd-edge data pack KIND OUT --shards 1000   (an interrupted pack has no index: run it again)"
            raise DataError(f"{name}: no index of shards ({error.strerror})", hint) from error
    else:
        raw = fetch(str(place))
    try:
        index = Index.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{name}: no index of shards: {where} {first['msg']}".replace(":  ", ": "), AGAIN) from error
    if index.version != VERSION:
        raise DataError(f"{name}: version {index.version}, known is {VERSION}", "pack again, or use that dtkd-edge")
    for entry in index.shards:
        if why := _at_odds(entry, index.classes, next(e for e in index.shards if e.split == entry.split)):
            raise DataError(f"{name}: {entry.name}: {why}", AGAIN)
    return index


def _at_odds(entry: Entry, classes: dict[str, list[str]], first: Entry) -> str:
    """Why an entry of the index cannot be; empty where it can."""
    if not entry.files:
        return "a shard without clips"
    if not classes:
        return "the index names no classes"
    for column, values in entry.columns():
        if len(values) != len(entry.files):
            return f"{len(values)} {column} of {len(entry.files)} clips"
    ends = np.array(entry.offsets) + np.array(entry.sizes)
    if ends.max() > entry.size:
        return f"{entry.files[int(ends.argmax())]} ends at byte {ends.max()} of {entry.size}"
    if set(entry.labels) != set(classes):
        return f"labels of {', '.join(entry.labels)}, the classes are of {', '.join(classes)}"
    for head, labels in entry.labels.items():
        if max(labels) >= len(classes[head]):
            clip = entry.files[labels.index(max(labels))]
            return f"{clip}: label {max(labels)} of head {head} is outside its {len(classes[head])} classes"
    if (entry.groups is None, entry.ids is None) != (first.groups is None, first.ids is None):
        return f"other columns than {first.name}"
    if {p: set(m) for p, m in entry.parts.items()} != {p: set(m) for p, m in first.parts.items()}:
        return f"other parts than {first.name}"
    return ""


def look(shards: Iterable[Shard]) -> None:
    """That every shard is there, and as long as the index says. Raises for the first that is not."""
    with ThreadPoolExecutor(REQUESTS, thread_name_prefix="shards") as pool:
        for _ in pool.map(Shard.check, shards):
            pass


def verify(shards: Iterable[Shard], *, sums: bool) -> int:
    """That all shards are there; with `sums`, that their bytes are those that were packed. Returns how many there are. DataError
    names the first that is not."""
    chosen = list(shards)
    look(chosen)
    if sums:
        with progress("sha256", len(chosen)) as bar:
            for shard in chosen:
                if _digest(shard) != shard.sha256:
                    raise DataError(f"{shown(shard.place)}: its bytes are not those of the index (sha256)", "copy it again")
                bar.advance()
    return len(chosen)


def _digest(shard: Shard) -> str:
    if isinstance(shard.place, Path):
        return sha256(shard.place)
    import hashlib

    from dtkd_edge.data.members import Member

    digest = hashlib.sha256()
    for at in range(0, shard.size, BLOCK):
        digest.update(Member(shard, at, min(BLOCK, shard.size - at)).read())
    return digest.hexdigest()
