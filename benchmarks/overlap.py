"""How much of the slower of decoding and inference is left when `predict` does both over many videos.

    python -m dtkd_edge.benchmarks.overlap ARTIFACT VIDEO|FOLDER … [--videos 64] [--repeats 7] [--device cpu] [--threads 1]

Three ways over the same videos, in changing order: decoding alone (as many threads as `predict` has), inference alone on
clips that are ready, and `predict`'s own loop. A repetition gives the ratio of the slower of the first two to the third: 1 is
a perfect overlap. Printed are medians and the spread of the ratio.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dtkd_edge.artifact import Artifact
from dtkd_edge.deploy.classifier import Classifier
from dtkd_edge.deploy.command import DECODERS, VIDEO_SUFFIXES, predict_all
from dtkd_edge.errors import DataError
from dtkd_edge.exits import reported


def measure(classifier: Classifier, videos: list[Path], repeats: int) -> dict[str, list[float]]:
    """Seconds of each repetition over all videos: of 'decode', 'inference' and 'predict'."""
    with ThreadPoolExecutor(DECODERS) as pool:
        ready = list(pool.map(classifier.read, videos))  # broken videos end it here, with their own error

    def decode() -> None:
        with ThreadPoolExecutor(DECODERS) as pool:
            for _ in pool.map(classifier.read, videos):
                pass

    def infer() -> None:
        for clip in ready:
            classifier.predict_frames(clip)

    def both() -> None:
        for _ in predict_all(classifier, videos):
            pass

    work: dict[str, Callable[[], None]] = {"decode": decode, "inference": infer, "predict": both}
    infer()  # warm
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats):
        names = list(work)
        for name in names[turn % 3 :] + names[: turn % 3]:
            start = time.perf_counter()
            work[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def find_videos(paths: Sequence[Path], most: int) -> list[Path]:
    """The videos, those below folders too; fewer than `most` are gone round again."""
    found = [
        file
        for path in paths
        for file in (sorted(f for f in path.rglob("*") if f.suffix.lower() in VIDEO_SUFFIXES) if path.is_dir() else [path])
    ]
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no videos there", "name videos or a folder of them")
    return list(itertools.islice(itertools.cycle(found), most))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("paths", type=Path, nargs="+", metavar="VIDEO|FOLDER")
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the runtime; default: its own choice, as in predict")
    asked = parser.parse_args(argv)
    videos = find_videos(asked.paths, asked.videos)
    with Classifier(Artifact.open(asked.artifact), device=asked.device, threads=asked.threads) as classifier:
        seconds = measure(classifier, videos, asked.repeats)
    for name, times in seconds.items():
        print(f"{name:9s}  {len(videos) / statistics.median(times):8.1f} videos/s")
    ratios = sorted(max(d, i) / b for d, i, b in zip(*seconds.values(), strict=True))
    spread = f"{ratios[0]:.2f}–{ratios[-1]:.2f}, {len(ratios)} repetitions"
    print(f"predict reaches {statistics.median(ratios):.2f} of the slower ({spread})")


if __name__ == "__main__":
    reported(main)
