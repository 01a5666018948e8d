"""`dtkd-edge data pack … --shards N`: a data set as tar shards of N clips each, with an index (see shards.py). No torch.

A shard is written aside, read back, and only then gets its name and its line in shards.jsonl; index.json comes last. So a pack
that was killed goes on with the shards that were not finished, and nobody takes half a pack for a whole one. A shard whose clips
have changed since is made again.

The training clips are shuffled once, so that tools that read shards from front to back see all classes; the index keeps the
original order, and training by it sees the clips as before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from dtkd_edge.console import check_result, counted, progress, say, write_result
from dtkd_edge.data.catalogue import SIDES, Catalogue, Split, open_split
from dtkd_edge.data.check import data_config, too_many_broken
from dtkd_edge.data.encode import require_av
from dtkd_edge.data.pack import Settings, claim, clip_key, clip_names, write_classes
from dtkd_edge.data.shard_writer import Plan, extra_of, make_shard, plain_text
from dtkd_edge.data.shards import INDEX, Entry, Index
from dtkd_edge.files import disk_errors, one_at_a_time, write_text

JOURNAL = "shards.jsonl"
VERSION = 1


def pack_shards(
    source: str,
    out: Path,
    *,
    overrides: list[str],
    settings: Settings,
    per_shard: int,
    copy: bool = False,
    jobs: int | None = None,
    json: str | None = None,
) -> dict[str, Any]:
    """Pack both sides of a recipe's data set into shards below `out`. copy: take whole files as they are, without encoding.

    Raises DataError where more than data.max_broken of a side's clips do not decode (finished shards stay), where `out` holds
    something else, and with `copy` for clips that are only a part of a file.
    """
    if not copy:
        require_av()
    check_result(json)
    config = data_config(source, overrides)
    sides: dict[Split, Catalogue] = {side: open_split(config, side) for side in SIDES}
    began = time.perf_counter()
    with disk_errors(out), one_at_a_time(out):
        claim(out, {"version": VERSION, "kind": config.kind, "shards": per_shard, "copy": copy, **asdict(settings)})
        plans = _plans(sides, per_shard)
        done = _finished(out)
        kept = {p.name: done[p.name] for p in plans if p.name in done and _same(out, p, done[p.name])}
        todo = [plan for plan in plans if plan.name not in kept]
        _tidy(out, kept, done, bool(todo))
        if kept:
            say(f"{out}: {len(kept)} of {counted(len(plans), 'shard')} packed already")
        jobs = jobs or len(os.sched_getaffinity(0))
        with progress("pack", sum(len(plan.numbers) for plan in todo)) as bar, ThreadPoolExecutor(jobs) as pool:
            try:
                for plan in todo:
                    entry = make_shard(out, plan, sides[plan.side], settings, copy, (pool, 2 * jobs), bar.advance)
                    _note(out, entry)
                    kept[plan.name] = entry
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        entries = [kept[plan.name] for plan in plans]
        broken = {key: why for entry in entries for key, why in entry.broken.items()}
        for key, why in sorted(broken.items()):
            say(f"left out: {key}: {why}")
        for side, catalogue in sides.items():
            lost = sum(len(entry.broken) for entry in entries if entry.split == side)
            too_many_broken(f"{out}: {side}", lost, len(catalogue), config.max_broken, "; finished shards stay")
        classes = sides["train"].classes
        write_classes(out, classes)
        index = Index(kind=config.kind, classes=classes, shards=[entry for entry in entries if entry.files])
        write_text(out / INDEX, index.model_dump_json(exclude_none=True) + "\n")
        (out / JOURNAL).unlink(missing_ok=True)
    result: dict[str, Any] = {
        "out": str(out),
        "clips": {side: sum(len(entry.files) for entry in entries if entry.split == side) for side in sides},
        "shards": {side: sum(entry.split == side for entry in index.shards) for side in sides},
        "made": len(todo),
        "broken": broken,
        "bytes": sum(entry.size for entry in entries),
        "seconds": round(time.perf_counter() - began, 2),
    }
    if json is not None:
        write_result(result, json)
    packed = f"{result['clips']['train']} training and {counted(result['clips']['val'], 'validation clip')}"
    size = f"{result['bytes'] / 1e6:.1f} MB in all ({result['seconds']:.1f} s)"
    say(f"{out}: {packed} in {counted(len(index.shards), 'shard')}, {len(todo)} made now, {size}")
    say(f"train on it with: --set data.kind=shards --set data.root={out}   (or its URL, once it is on a web server)")
    return result


def _plans(sides: dict[Split, Catalogue], per_shard: int) -> list[Plan]:
    clips = {side: [catalogue[i] for i in range(len(catalogue))] for side, catalogue in sides.items()}
    roots = {side: catalogue.root for side, catalogue in sides.items()}
    names = clip_names([clip for side in clips for clip in clips[side]], roots)
    taken: set[str] = set()
    plans = []
    for side, catalogue in sides.items():
        count = len(catalogue)
        order = np.random.default_rng(0).permutation(count) if side == "train" else np.arange(count)
        for at in range(0, count, per_shard):
            numbers = [int(number) for number in order[at : at + per_shard]]
            digest = hashlib.sha256(repr(catalogue.classes).encode("utf-8", "surrogateescape"))
            keys = []
            for number in numbers:
                clip = clips[side][number]
                keys.append(_key(names[clip_key(clip)], taken))
                state = (keys[-1], number, clip_key(clip), clip.state(), clip.labels, extra_of(catalogue, number))
                digest.update(repr(state).encode("utf-8", "surrogateescape"))
            plans.append(Plan(f"{side}-{at // per_shard:06d}.tar", side, numbers, keys, digest.hexdigest()))
    return plans


def _key(name: str, taken: set[str]) -> str:
    """WebDataset's key of a packed file's name: no dot in its last part (the first one ends the key), and given only once."""
    folder, _, last = plain_text(name.removeprefix("videos/").removesuffix(".mp4")).rpartition("/")
    stem = (f"{folder}/" if folder else "") + last.replace(".", "_")
    key, number = stem, 2
    while key in taken:  # a clip on both sides, or twice in a list
        key, number = f"{stem}-{number}", number + 1
    taken.add(key)
    return key


def _finished(out: Path) -> dict[str, Entry]:
    """What an earlier pack has finished, by name."""
    entries: dict[str, Entry] = {}
    if (out / INDEX).is_file():
        with suppress(ValidationError):
            entries |= {entry.name: entry for entry in Index.model_validate_json((out / INDEX).read_bytes()).shards}
    if (out / JOURNAL).is_file():
        for line in (out / JOURNAL).read_bytes().splitlines():
            with suppress(ValidationError):  # a kill in the middle of a line
                entry = Entry.model_validate_json(line)
                entries[entry.name] = entry
    return entries


def _same(out: Path, plan: Plan, entry: Entry) -> bool:
    if entry.plan != plan.digest:
        return False
    file = out / plan.name
    return not entry.files or (file.is_file() and file.stat().st_size == entry.size)


def _tidy(out: Path, kept: dict[str, Entry], done: dict[str, Entry], change: bool) -> None:
    """Remove what a killed pack has left, and shards that are no longer meant; no index while shards change."""
    for left in (left for start in ("clips-", "train-", "val-", INDEX, JOURNAL) for left in out.glob(f".{start}*")):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    if change or set(done) - set(kept):
        write_text(out / JOURNAL, "".join(entry.model_dump_json(exclude_none=True) + "\n" for entry in kept.values()))
        (out / INDEX).unlink(missing_ok=True)
    for name in set(done) - set(kept):
        (out / name).unlink(missing_ok=True)


def _note(out: Path, entry: Entry) -> None:
    with (out / JOURNAL).open("a", encoding="utf-8") as stream:
        stream.write("\n" + entry.model_dump_json(exclude_none=True) + "\n")  # begins anew after a torn line
