"""The generated data sets `motion` and `order`, written as real mp4 files with train and val lists. No torch.

Every clip depends on (seed, kind, split, index, size) alone, so a set can be made anew anywhere, in any number of processes.

    python -m dtkd_edge.data.motion   < work.json     writes a share of a set: how `generate` uses the other cores
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.console import progress, say
from dtkd_edge.data.encode import encode, require_av
from dtkd_edge.data.scene import CLASSES, render
from dtkd_edge.errors import DataError, DtkdEdgeError, UsageError
from dtkd_edge.files import atomic_folder, cache_folder, is_foreign, one_at_a_time, write_json, write_text

DESCRIPTION = "motion.json"
VERSION = 2  # of the pictures: raise it when the same parameters give other clips
ALONE = 64  # so few clips are written faster than another Python starts
SPLITS = ("train", "val")


def parameters(kind: str, clips: int, val_clips: int, size: int, seed: int) -> dict[str, Any]:
    """What a generated set depends on, as kept in its motion.json."""
    return {
        "generator": "dtkd-edge motion",
        "version": VERSION,
        "kind": kind,
        "clips": clips,
        "val_clips": val_clips,
        "size": size,
        "seed": seed,
    }


def default_folder(kind: str, clips: int, val_clips: int, size: int, seed: int) -> Path:
    """Where the set is kept when nobody names a folder."""
    text = json.dumps(parameters(kind, clips, val_clips, size, seed), sort_keys=True)
    return cache_folder() / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def generate(folder: Path, kind: str, clips: int, val_clips: int, size: int, seed: int) -> Path:
    """Write the set to `folder`, whole or not at all; nothing to do where the same set is there already.

    The folder gets videos/{train,val}/NNNNNN.mp4, train.csv, val.csv, classes.txt and motion.json. A folder that holds
    anything else is refused.
    """
    if kind not in CLASSES:
        raise UsageError(f"--kind {kind}: no such generated set", f"one of: {', '.join(CLASSES)}")
    if size % 2 or size < 24:
        raise UsageError(f"size {size}: expected an even number of at least 24 (h264 stores colour at half size)", "take 48")
    wanted = parameters(kind, clips, val_clips, size, seed)
    if _there(folder, wanted):
        return folder
    require_av()
    with one_at_a_time(folder):
        if _there(folder, wanted):  # another process was quicker
            return folder
        say(f"writing {clips} + {val_clips} clips of the generated set {kind} to {folder}")
        with atomic_folder(folder) as aside:
            _write_clips(aside, wanted)
            for split, count in (("train", clips), ("val", val_clips)):
                _write_list(aside / f"{split}.csv", kind, split, count)
            write_text(aside / "classes.txt", "".join(f"{name}\n" for name in CLASSES[kind]))
            write_json(aside / DESCRIPTION, wanted)
    return folder


def write_clip(path: Path, kind: str, split: str, index: int, size: int, seed: int) -> None:
    """Render and write one clip; its label is `index` modulo the number of classes."""
    rng = np.random.default_rng([seed, list(CLASSES).index(kind), SPLITS.index(split), index])
    frames, fps = render(kind, index % len(CLASSES[kind]), rng, size)
    write_video(path, frames, fps)


def write_video(path: Path, frames: NDArray[np.uint8], fps: int, *, crf: int = 20) -> None:
    """uint8 RGB `[n, H, W, 3]` (H and W even) → an h264 mp4 file. Small frames, so one thread and the quickest preset.

    Every frame is coded by itself (`keyframes=1`): predicted frames keep ghosts of where the object was, which would tell the
    motion from one frame.
    """
    height, width = frames.shape[1:3]
    encode(path, frames, (width, height), fps, crf=crf)


def _there(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether that very set lies in the folder. Raises DataError where something else does."""
    description = folder / DESCRIPTION
    if description.is_file():
        try:
            found = json.loads(description.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{description}: not readable: {error}", "delete the folder, or name another one") from error
        if found == wanted:
            return True
        other = ", ".join(f"{k} {found.get(k)!r} (wanted {v!r})" for k, v in wanted.items() if found.get(k) != v)
        raise DataError(f"{folder}: holds another generated set: {other}", "name another folder, or delete this one")
    if is_foreign(folder):
        raise DataError(f"{folder}: exists and is no generated set (no {DESCRIPTION})", "name a new or an empty folder")
    return False


def _write_list(path: Path, kind: str, split: str, count: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", "label"])
        names = CLASSES[kind]
        writer.writerows((f"videos/{split}/{i:06d}.mp4", names[i % len(names)]) for i in range(count))


def _write_clips(folder: Path, wanted: dict[str, Any]) -> None:
    for split in SPLITS:
        (folder / "videos" / split).mkdir(parents=True)
    total = wanted["clips"] + wanted["val_clips"]
    processes = 1 if total <= ALONE else min(len(os.sched_getaffinity(0)), -(-total // ALONE), 16)
    work = {**wanted, "folder": str(folder), "parent": os.getpid(), "processes": processes}
    with progress("clips", total) as bar:
        if processes == 1:
            for _ in _share({**work, "share": 0}):
                bar.advance()
            return
        # Other Pythons, not multiprocessing: that would import the caller's script again, or fork its threads.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        children = []
        try:
            for share in range(processes):
                child = subprocess.Popen(
                    [sys.executable, "-m", "dtkd_edge.data.motion"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
                children.append(child)
                assert child.stdin is not None
                with suppress(BrokenPipeError):  # its exit code says more
                    child.stdin.write(json.dumps({**work, "share": share}))
                    child.stdin.close()
            for child in children:
                assert child.stdout is not None and child.stderr is not None
                for _ in child.stdout:  # one line per clip
                    bar.advance()
                complaint = child.stderr.read().strip()
                if child.wait() != 0:
                    if child.returncode == 28:
                        raise DataError(f"{folder.parent}: the disk is full", "free some space, then run it again")
                    reason = complaint.splitlines()[-1] if complaint else f"exit code {child.returncode}"
                    raise DtkdEdgeError(f"generating clips failed: {reason}", "run it again; report it if it happens again")
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()
                for pipe in (child.stdout, child.stderr):
                    assert pipe is not None
                    pipe.close()


def _share(work: dict[str, Any]) -> Iterator[int]:
    """Write every `processes`-th clip, beginning with number `share`; yields after each."""
    todo = [("train", i) for i in range(work["clips"])] + [("val", i) for i in range(work["val_clips"])]
    for split, index in todo[work["share"] :: work["processes"]]:
        path = Path(work["folder"], "videos", split, f"{index:06d}.mp4")
        write_clip(path, work["kind"], split, index, work["size"], work["seed"])
        yield index


def _main() -> int:
    import errno

    work = json.load(sys.stdin)
    try:
        for index in _share(work):
            print(index, flush=True)
            if os.getppid() != work["parent"]:  # nobody waits for the rest
                return 1
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return 28
        raise
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(_main())
