"""The training loader with W threads against one bare decoder, and whether its memory stays flat.

    python -m dtkd_edge.benchmarks.workers FOLDER [--workers 2] [--clips 400] [--repeats 5] [--size 224] [--frames 8]

FOLDER is what kind `folder` reads. Blocks alternate: one thread that only decodes the sampled frames (decord), and the loader as
evaluation uses it (decode, sample, resize, crop, collate), nothing kept in memory. Clips are taken round and round. Printed are
clips per second, the loader's as a share of W bare decoders, and the process's memory after each tenth of all that it read.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dtkd_edge.exits import reported
from dtkd_edge.preprocess import Sampling

if TYPE_CHECKING:
    from dtkd_edge.data.catalogue import Catalogue
    from dtkd_edge.data.loader import Loader


def resident() -> float:
    """MB of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def bare(clips: Catalogue, sampling: Sampling) -> float:
    """Seconds that one thread takes to decode the sampled frames of all clips."""
    import decord

    began = time.perf_counter()
    for index in range(len(clips)):
        reader = decord.VideoReader(str(clips.path(index)), num_threads=1)
        reader.get_batch(np.unique(sampling.indices(len(reader)))).asnumpy()
    return time.perf_counter() - began


def loaded(loader: Loader) -> float:
    began = time.perf_counter()
    for batch in loader:
        del batch
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clips", type=int, default=400, help="of each block")
    parser.add_argument("--repeats", type=int, default=5, help="blocks of each kind")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--resize-short", type=int, default=256)
    parser.add_argument("--frames", type=int, default=8)
    options = parser.parse_args()
    import decord

    from dtkd_edge.data.catalogue import open_split
    from dtkd_edge.data.dataset import ClipDataset, make_loader
    from dtkd_edge.recipe import data_at

    decord.logging.set_level(decord.logging.QUIET)
    whole = open_split(data_at(options.folder), "train")
    clips = whole.subset(np.arange(options.clips) % len(whole))
    sampling = Sampling(frames=options.frames)
    data = ClipDataset(
        clips, sampling=sampling, size=options.size, resize_short=options.resize_short, augment=None, seed=0, cache_mb=0
    )
    loader = make_loader(data, 8, train=False, workers=options.workers, seed=0)
    bare(clips.subset(np.arange(min(16, len(clips)))), sampling)  # warm up
    rates, memory = [], []
    for _ in range(options.repeats):
        rates.append((len(clips) / bare(clips, sampling), len(clips) / loaded(loader)))
        memory.append(resident())
    one, many = np.median(np.array(rates), axis=0)
    shares = np.array([fast / (options.workers * slow) for slow, fast in rates])
    print(f"{options.repeats} × {len(clips)} clips, {options.frames} frames each, {options.size} pixels")
    print(f"one bare decoder   {one:8.2f} clips/s")
    print(f"{options.workers} workers          {many:8.2f} clips/s")
    print(f"share of {options.workers} × bare  {np.median(shares):8.3f}   ({shares.min():.3f} to {shares.max():.3f})")
    tenths = memory if len(memory) <= 10 else [memory[int(i)] for i in np.linspace(0, len(memory) - 1, 10)]
    print(f"memory, MB, over {options.repeats * len(clips)} clips: " + " ".join(f"{value:.0f}" for value in tenths))


if __name__ == "__main__":
    reported(main)
