"""How much of the bare decoder's frame rate is left when clips are sampled, resized and cropped as for a model.

    python -m dtkd_edge.benchmarks.loader FOLDER [--size 224] [--frames 8] [--files 40] [--repeats 7]

One worker (one thread of this process) reads the same frames of the same files twice: bare (decord opens the file and decodes
them) and whole (`read_input`: the bounded decoder, sampling, resize, crop). The two alternate file by file, in changing
order, so that a busy machine slows both alike. A repetition gives one ratio; printed are the median and the spread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from dtkd_edge.decoder import EXTENSIONS, load_decord
from dtkd_edge.errors import DataError
from dtkd_edge.exits import reported
from dtkd_edge.preprocess import Preprocess, Sampling
from dtkd_edge.video import read_input


def bare(path: Path, sampling: Sampling) -> int:
    reader = load_decord().VideoReader(str(path), num_threads=1)
    return len(reader.get_batch(np.unique(sampling.indices(len(reader)))).asnumpy())


def whole(path: Path, preprocess: Preprocess) -> int:
    return int(read_input(path, preprocess).shape[1])


def measure(files: list[Path], preprocess: Preprocess, repeats: int) -> list[tuple[float, float]]:
    """Seconds (bare, whole) of each repetition over all files."""
    for path in files[:3]:  # warm up
        bare(path, preprocess.sampling)
        whole(path, preprocess)
    seconds = []
    for repeat in range(repeats):
        spent = [0.0, 0.0]
        for number, path in enumerate(files):
            for which in (0, 1) if (repeat + number) % 2 else (1, 0):
                began = time.perf_counter()
                if which:
                    whole(path, preprocess)
                else:
                    bare(path, preprocess.sampling)
                spent[which] += time.perf_counter() - began
        seconds.append((spent[0], spent[1]))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--resize-short", type=int, default=256)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--files", type=int, default=40, help="as many of the folder's files, evenly chosen")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    found = sorted(p for p in options.folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
    if not found:
        raise DataError(f"{options.folder}: no videos", "give a folder that holds some")
    files = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, options.files).astype(int))]
    preprocess = Preprocess.model_validate(
        {"resize_short": options.resize_short, "crop": options.size, "sampling": Sampling(frames=options.frames)}
    )
    seconds = np.array(measure(files, preprocess, options.repeats))
    ratio = seconds[:, 0] / seconds[:, 1]
    frames = len(files) * options.frames
    print(f"{len(files)} files, {options.frames} frames each, {options.repeats} repetitions, {options.size} pixels")
    print(f"bare decoder        {frames / np.median(seconds[:, 0]):8.1f} frames/s")
    print(f"decode + preprocess {frames / np.median(seconds[:, 1]):8.1f} frames/s")
    print(f"ratio               {np.median(ratio):8.3f}   ({ratio.min():.3f} to {ratio.max():.3f})")


if __name__ == "__main__":
    reported(main)
