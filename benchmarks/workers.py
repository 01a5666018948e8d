"""The training loader with W threads against one bare decoder, and whether its memory stays flat.

    python -m dtkd_edge.benchmarks.workers FOLDER [--workers 2] [--clips 400] [--repeats 5] [--size 224] [--frames 8]
        [--evaluation] [--soak 10000]

FOLDER is what kind `folder` reads. Blocks alternate: one thread that only decodes the sampled frames (decord), W such threads,
and the loader as training uses it (decode, sample, scale, random crop, collate) or, if so asked, as evaluation does; nothing
is kept in memory. Clips are taken round and round. Printed are clips per second, the loader's as a share of W bare decoders
(and of W that really run beside each other, which is what the machine can do). --soak N: the loader alone reads N clips, and the
process's memory is printed after each tenth of them; no other figure is taken then.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dtkd_edge.decoder import load_decord
from dtkd_edge.exits import reported
from dtkd_edge.preprocess import Sampling

if TYPE_CHECKING:
    from dtkd_edge.data.catalogue import Catalogue
    from dtkd_edge.data.loader import Loader


def resident() -> float:
    """MB of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def bare(clips: Catalogue, sampling: Sampling, threads: int = 1) -> float:
    """Seconds per clip that so many threads take to decode the sampled frames."""

    def decode(index: int) -> None:
        reader = load_decord().VideoReader(str(clips.path(index)), num_threads=1)
        reader.get_batch(np.unique(sampling.indices(len(reader)))).asnumpy()

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(decode, range(len(clips))):
            pass
    return (time.perf_counter() - began) / len(clips)


def loaded(loader: Loader) -> float:
    """Seconds per clip that the loader yields; training leaves a last, short batch out."""
    began, clips = time.perf_counter(), 0
    for batch in loader:
        clips += len(batch["index"])
    return (time.perf_counter() - began) / clips


def soak(loader: Loader, clips: int) -> None:
    """Read so many clips, the loader's round and round, and print the memory after each tenth."""
    read, memory = 0, [resident()]
    while read < clips:
        for batch in loader:
            read += len(batch["frames"])
            if read >= clips * len(memory) / 10:
                memory.append(resident())
            if read >= clips:
                break
    print(f"memory, MB, before and after each tenth of {read} clips: " + " ".join(f"{value:.0f}" for value in memory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clips", type=int, default=400, help="of each block")
    parser.add_argument("--repeats", type=int, default=5, help="blocks of each kind")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--resize-short", type=int, default=256)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--soak", type=int, metavar="N", help="only read N clips and watch the memory")
    parser.add_argument("--evaluation", action="store_true", help="the loader of evaluation: centre crop, by Pillow")
    options = parser.parse_args()
    from dtkd_edge.data.catalogue import open_split
    from dtkd_edge.data.dataset import ClipDataset, make_loader
    from dtkd_edge.recipe import AugmentConfig
    from dtkd_edge.recipe_reader import data_at

    whole = open_split(data_at(options.folder), "train")
    clips = whole.subset(np.arange(options.clips) % len(whole))
    sampling = Sampling(frames=options.frames)
    data = ClipDataset(
        clips,
        sampling=sampling,
        size=options.size,
        resize_short=options.resize_short,
        augment=None if options.evaluation else AugmentConfig(),
        seed=0,
        cache_mb=0,
    )
    loader = make_loader(data, 8, train=not options.evaluation, workers=options.workers, seed=0)
    bare(clips.subset(np.arange(min(16, len(clips)))), sampling)  # warm up
    if options.soak:
        return soak(loader, options.soak)
    count, seconds = options.workers, []
    for _ in range(options.repeats):
        seconds.append((bare(clips, sampling), bare(clips, sampling, count), loaded(loader)))
    times = np.array(seconds)
    print(f"{options.repeats} × {len(clips)} clips, {options.frames} frames each, {options.size} pixels")
    for name, taken in zip(("one bare decoder", f"{count} bare decoders", f"{count} workers"), times.T, strict=True):
        print(f"{name:24s}{1 / np.median(taken):8.2f} clips/s")
    for name, share in (
        (f"workers / {count} × one bare", times[:, 0] / count / times[:, 2]),
        (f"workers / {count} bare ones", times[:, 1] / times[:, 2]),
    ):
        print(f"{name:24s}{np.median(share):8.3f}   ({share.min():.3f} to {share.max():.3f})")


if __name__ == "__main__":
    reported(main)
