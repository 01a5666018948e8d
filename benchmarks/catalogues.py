"""What opening a data set of 100,000 clips costs: seconds, and memory on top of the interpreter with the package imported.

    python -m dtkd_edge.benchmarks.catalogues [--rows 100000] [--kinds epic100,ssv2]

Writes official-looking lists and empty files to a temporary folder (the files are only listed, never read), then opens the
training side of each kind in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _touch(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def _per_class(rows: int, classes: int) -> list[range]:
    return [range(number, rows, classes) for number in range(classes)]


def _csv(root: Path, rows: int) -> dict[str, Any]:
    lines = (f"videos/class{i % 400}/clip_{i:08d}.mp4,class{i % 400}\n" for i in range(rows))
    (root / "train.csv").write_text("path,label\n" + "".join(lines))
    _touch(root / "videos/class0", ["clip_00000000.mp4"])
    (root / "val.csv").write_text("path,label\nvideos/class0/clip_00000000.mp4,class0\n")
    return {"train": "train.csv", "val": "val.csv"}


def _hmdb51(root: Path, rows: int) -> dict[str, Any]:
    lists = root / "testTrainMulti_7030_splits"
    lists.mkdir()
    for number, clips in enumerate(_per_class(rows, 51)):
        (lists / f"class{number:02d}_test_split1.txt").write_text("".join(f"clip_{i:08d}.avi 1 \n" for i in clips))
        _touch(root / "videos" / f"class{number:02d}", [f"clip_{i:08d}.avi" for i in clips])
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


def _frame_list(root: Path, rows: int) -> dict[str, Any]:
    (root / "train.txt").write_text("".join(f"class {i % 400}/clip {i:08d} {i % 200 + 30} {i % 400}\n" for i in range(rows)))
    (root / "class 0/clip 00000000").mkdir(parents=True)
    return {"train": "train.txt", "val": "train.txt"}


KINDS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "csv": _csv,
    "hmdb51": _hmdb51,
    "kinetics400": _kinetics400,
    "ssv2": _ssv2,
    "epic100": _epic100,
    "frame-list": _frame_list,
}


def open_one(raw: dict[str, Any]) -> dict[str, float]:
    """Open the training side here; seconds of wall time, and MB of peak memory that it added."""
    from dtkd_edge.data.catalogue import open_split
    from dtkd_edge.recipe import DataConfig

    config = DataConfig.model_validate(raw)
    __import__(
        "dtkd_edge.data."
        + {"csv": "lists", "frame-list": "mmaction"}.get(config.kind, config.kind.replace("kinetics400", "kinetics"))
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    catalogue = open_split(config, "train")
    seconds = time.perf_counter() - began
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"clips": len(catalogue), "seconds": seconds, "mb": added, "peak_mb": before / 1024 + added}


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
    print(f"{'kind':12s} {'clips':>8s} {'seconds':>8s} {'added MB':>9s} {'peak MB':>8s}")
    for kind in options.kinds.split(","):
        found = measure(kind, options.rows)
        print(f"{kind:12s} {found['clips']:8.0f} {found['seconds']:8.2f} {found['mb']:9.1f} {found['peak_mb']:8.1f}", flush=True)


if __name__ == "__main__":
    main()
