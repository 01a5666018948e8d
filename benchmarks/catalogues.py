"""What opening a data set of 100,000 clips costs: seconds, and memory on top of the interpreter with the package imported.

    python -m dtkd_edge.benchmarks.catalogues [--rows 100000] [--kinds epic100,ssv2]

Writes official-looking lists and empty files to a temporary folder (the files are only listed, never read), then opens the
training side of each kind in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dtkd_edge.exits import reported


def _touch(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        os.mknod(folder / name)  # an empty file, in one call of the three that touch() makes


def _per_class(rows: int, classes: int) -> list[range]:
    return [range(number, rows, classes) for number in range(classes)]


def _csv(root: Path, rows: int) -> dict[str, Any]:
    lines = (f"videos/class{i % 400}/clip_{i:08d}.mp4,class{i % 400}\n" for i in range(rows))
    (root / "train.csv").write_text("path,label\n" + "".join(lines))
    _touch(root / "videos/class0", ["clip_00000000.mp4"])
    (root / "val.csv").write_text("path,label\nvideos/class0/clip_00000000.mp4,class0\n")
    return {"train": "train.csv", "val": "val.csv"}


def _csv_held_out(root: Path, rows: int) -> dict[str, Any]:
    return {**_csv(root, rows), "kind": "csv", "val": None}


def _csv_groups(root: Path, rows: int) -> dict[str, Any]:
    """Three clips of every recording, none of which may be parted."""
    lines = (f"videos/class{i % 400}/clip_{i:08d}.mp4,class{i % 400},recording {i // 3}\n" for i in range(rows))
    (root / "train.csv").write_text("path,label,group\n" + "".join(lines))
    _touch(root / "videos/class0", ["clip_00000000.mp4"])
    return {"kind": "csv", "train": "train.csv"}


def _folder(root: Path, rows: int) -> dict[str, Any]:
    for number, clips in enumerate(_per_class(rows, 400)):
        _touch(root / f"class {number}", [f"clip_{i:08d}.mp4" for i in clips])
    return {}


def _shards(root: Path, rows: int) -> dict[str, Any]:
    """Shards of 1000 clips as `data pack` writes them, of which only the index is read; the tar files are holes."""
    from dtkd_edge.data.shards import Entry, Index

    entries = []
    for number, at in enumerate(range(0, rows, 1000)):
        clips = range(at, min(at + 1000, rows))
        name, size = f"train-{number:06d}.tar", 20480 * len(clips)
        with (root / name).open("wb") as stream:
            stream.truncate(size)
        entry = Entry(
            name=name,
            split="train",
            size=size,
            sha256="0" * 64,
            files=[f"class_{i % 400}/clip_{i:08d}.mp4" for i in clips],
            offsets=[20480 * i for i in range(len(clips))],
            sizes=[20000] * len(clips),
            numbers=list(clips),
            labels={"action": [i % 400 for i in clips]},
        )
        entries.append(entry)
    index = Index(kind="kinetics400", classes={"action": [f"class {n}" for n in range(400)]}, shards=entries)
    (root / "index.json").write_text(index.model_dump_json(exclude_none=True))
    return {}


def _hmdb51(root: Path, rows: int) -> dict[str, Any]:
    lists = root / "testTrainMulti_7030_splits"
    lists.mkdir()
    for number, clips in enumerate(_per_class(rows, 51)):
        (lists / f"class{number:02d}_test_split1.txt").write_text("".join(f"clip_{i:08d}.avi 1 \n" for i in clips))
        _touch(root / "videos" / f"class{number:02d}", [f"clip_{i:08d}.avi" for i in clips])
    return {}


def _ucf101(root: Path, rows: int) -> dict[str, Any]:
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    lines = []
    for number, clips in enumerate(_per_class(rows, 101)):
        names = [f"v_Class{number}_g{n // 7:04d}_c{n % 7:02d}.avi" for n in range(len(clips))]
        lines += [f"Class{number}/{name} {number + 1}\n" for name in names]
        _touch(root / "UCF-101" / f"Class{number}", names)
    (lists / "classInd.txt").write_text("".join(f"{n + 1} Class{n}\n" for n in range(101)))
    (lists / "trainlist01.txt").write_text("".join(lines))
    return {}


def _kinetics400(root: Path, rows: int) -> dict[str, Any]:
    lines = ["label,youtube_id,time_start,time_end,split,is_cc\n"]
    for number, clips in enumerate(_per_class(rows, 400)):
        lines += [f"class {number},{i:011d},{i % 90},{i % 90 + 10},train,0\n" for i in clips]
        _touch(root / f"videos/train/class_{number}", [f"{i:011d}_{i % 90:06d}_{i % 90 + 10:06d}.mp4" for i in clips])
    (root / "train.csv").write_text("".join(lines))
    return {}


def _ssv2(root: Path, rows: int) -> dict[str, Any]:
    names = {f"Doing thing {n} with something": str(n) for n in range(174)}
    (root / "something-something-v2-labels.json").write_text(json.dumps(names))
    entries = [
        {
            "id": str(i),
            "label": f"doing thing {i % 174} with a cup",
            "template": f"Doing thing {i % 174} with [something]",
            "placeholders": ["a cup"],
        }
        for i in range(rows)
    ]
    (root / "something-something-v2-train.json").write_text(json.dumps(entries))
    _touch(root / "20bn-something-something-v2", [f"{i}.webm" for i in range(rows)])
    return {}


def _epic100(root: Path, rows: int) -> dict[str, Any]:
    for head, count in (("verb", 97), ("noun", 300)):
        text = "".join(f"{i},{head}{i},\"['{head}{i}']\",things\n" for i in range(count))
        (root / f"EPIC_100_{head}_classes.csv").write_text("id,key,instances,category\n" + text)
    header = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
        "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
    )
    lines = [header]
    for i in range(rows):
        second = i // 600
        clock = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
        video = f"P{i % 30 + 1:02d},P{i % 30 + 1:02d}_{i // 30 % 20:02d}"
        words = f"take cup,take,{i % 97},cup,{i % 300},\"['cup', 'plate']\",\"[{i % 300}, 2]\""
        lines.append(f"{video[4:]}_{i},{video},{clock}.00,{clock}.10,{clock}.90,{second * 60},{second * 60 + 50},{words}\n")
    (root / "EPIC_100_train.csv").write_text("".join(lines))
    for person in range(1, 31):
        _touch(root / f"P{person:02d}/videos", [f"P{person:02d}_{n:02d}.MP4" for n in range(20)])
    return {}


def _video_list(root: Path, rows: int) -> dict[str, Any]:
    (root / "train.txt").write_text("".join(f"class {i % 400}/clip {i:08d}.mp4 {i % 400}\n" for i in range(rows)))
    _touch(root / "class 0", ["clip 00000000.mp4"])
    return {"train": "train.txt", "val": "train.txt"}


def _frame_list(root: Path, rows: int) -> dict[str, Any]:
    (root / "train.txt").write_text("".join(f"class {i % 400}/clip {i:08d} {i % 200 + 30} {i % 400}\n" for i in range(rows)))
    (root / "class 0/clip 00000000").mkdir(parents=True)
    return {"train": "train.txt", "val": "train.txt"}


KINDS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "csv": _csv,
    "csv-held-out": _csv_held_out,
    "csv-groups": _csv_groups,
    "folder": _folder,
    "shards": _shards,
    "hmdb51": _hmdb51,
    "ucf101": _ucf101,
    "kinetics400": _kinetics400,
    "ssv2": _ssv2,
    "epic100": _epic100,
    "video-list": _video_list,
    "frame-list": _frame_list,
}
MODULES = {"csv": "lists", "video-list": "mmaction", "frame-list": "mmaction", "kinetics400": "kinetics"}


def open_one(raw: dict[str, Any]) -> dict[str, float]:
    """Open the training side here; seconds of wall time, and MB of peak memory that it added."""
    from dtkd_edge.data.catalogue import open_split
    from dtkd_edge.recipe import DataConfig

    config = DataConfig.model_validate(raw)
    importlib.import_module(f"dtkd_edge.data.{MODULES.get(config.kind, config.kind)}")
    before = _peak_mb()
    began = time.perf_counter()
    catalogue = open_split(config, "train")
    seconds = time.perf_counter() - began
    peak = _peak_mb()
    return {"clips": len(catalogue), "seconds": seconds, "mb": peak - before, "peak_mb": peak}


def _peak_mb() -> float:
    """Of this program: what getrusage tells begins with the peak of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(kind: str, rows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="catalogues-") as folder:
        raw = {"kind": kind, "root": folder, **KINDS[kind](Path(folder), rows)}
        command = [sys.executable, "-m", "dtkd_edge.benchmarks.catalogues", "--open", json.dumps(raw)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(open_one(json.loads(options.open))))
        return
    print(f"{'kind':13s} {'clips':>8s} {'seconds':>8s} {'added MB':>9s} {'peak MB':>8s}")
    for kind in options.kinds.split(","):
        found = measure(kind, options.rows)
        print(f"{kind:13s} {found['clips']:8.0f} {found['seconds']:8.2f} {found['mb']:9.1f} {found['peak_mb']:8.1f}", flush=True)


if __name__ == "__main__":
    reported(main)
