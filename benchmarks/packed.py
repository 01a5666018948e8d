"""How much faster clips are read from a packed copy of a data set (`dtkd-edge data pack`) than from the data set itself.

    python -m dtkd_edge.benchmarks.packed SOURCE PACKED [--at-least 720] [--frames 8] [--size 224] [--clips 16] [--repeats 5]

SOURCE and PACKED are folders that kind `folder` reads; clip i is the same in both. Of the training
clips those whose short side has `--at-least` pixels are read, one after the other by one thread, through `read_input`; the two
alternate clip by clip. Printed are the clips per second of both, and the median and spread of their ratio.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dtkd_edge.errors import DataError
from dtkd_edge.exits import reported
from dtkd_edge.preprocess import Preprocess, Sampling
from dtkd_edge.video import Video, read_input

if TYPE_CHECKING:
    from dtkd_edge.data.catalogue import Catalogue


def large(clips: Catalogue, at_least: int, count: int) -> list[int]:
    """Numbers of the first `count` clips of that short side."""
    found: list[int] = []
    for index in range(len(clips)):
        if min(Video(clips.path(index)).read(np.zeros(1, np.int64)).shape[1:3]) >= at_least:
            found.append(index)
            if len(found) == count:
                break
    if not found:
        raise DataError(f"{clips.root}: no clip of {at_least} pixels", "lower --at-least")
    return found


def measure(both: tuple[Catalogue, Catalogue], numbers: list[int], preprocess: Preprocess, repeats: int) -> list[list[float]]:
    """Seconds (source, packed) of each repetition over all clips."""
    seconds = []
    for repeat in range(repeats + 1):  # the first warms up
        spent = [0.0, 0.0]
        for index in numbers:
            for which in (0, 1) if (repeat + index) % 2 else (1, 0):
                began = time.perf_counter()
                read_input(both[which].path(index), preprocess)
                spent[which] += time.perf_counter() - began
        seconds.append(spent)
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--at-least", type=int, default=720)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--resize-short", type=int, default=256)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    from dtkd_edge.data.catalogue import open_split
    from dtkd_edge.recipe_reader import data_at

    source, packed = (open_split(data_at(folder), "train") for folder in (options.source, options.packed))
    if len(source) != len(packed):
        raise DataError(f"{options.packed}: {len(packed)} clips, not the {len(source)} of {options.source}", "pack it again")
    preprocess = Preprocess(resize_short=options.resize_short, crop=options.size, sampling=Sampling(frames=options.frames))
    numbers = large(source, options.at_least, options.clips)
    seconds = np.array(measure((source, packed), numbers, preprocess, options.repeats))
    ratio = seconds[:, 0] / seconds[:, 1]
    print(
        f"{len(numbers)} clips of at least {options.at_least} pixels, {options.frames} frames each, {options.repeats} repetitions"
    )
    for name, spent in zip(("source", "packed"), seconds.T, strict=True):
        print(f"{name} {len(numbers) / np.median(spent):8.2f} clips/s")
    print(f"ratio  {np.median(ratio):8.2f}   ({ratio.min():.2f} to {ratio.max():.2f})")


if __name__ == "__main__":
    reported(main)
