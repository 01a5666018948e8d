"""How much of the slower of decoding and inference is left when `predict` does both over many videos.

    python -m dtkd_edge.benchmarks.overlap ARTIFACT VIDEO|FOLDER … [--videos 64] [--repeats 7] [--threads 1] [--decoders 1]

Three ways over the same videos, in changing order: decoding alone (with as many threads), inference alone on clips that are
ready, and `predict`'s own loop. A repetition gives the ratio of the slower of the first two to the third: 1 is a perfect overlap.
Printed are medians and the spread of the ratio, the cores that each took, and the limit of this machine: work that takes C
seconds of CPU on N cores does not end before C / N, so where decoding and inference alone fill all cores, no overlap reaches 1.
With --threads 1 --decoders 1 on two cores each has its own.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dtkd_edge.artifact import Artifact
from dtkd_edge.deploy.classifier import Classifier
from dtkd_edge.deploy.command import DECODERS, EXTENSIONS, predict_all
from dtkd_edge.errors import DataError
from dtkd_edge.exits import reported

Times = dict[str, list[tuple[float, float]]]  # of each repetition over all videos: seconds, and seconds of CPU


def measure(classifier: Classifier, videos: list[Path], repeats: int, decoders: int = DECODERS) -> Times:
    """Of 'decode', 'inference' and 'predict'."""
    with ThreadPoolExecutor(decoders) as pool:
        ready = list(pool.map(classifier.read, videos))  # broken videos end it here, with their own error

    def decode() -> None:
        with ThreadPoolExecutor(decoders) as pool:
            for _ in pool.map(classifier.read, videos):
                pass

    def infer() -> None:
        for clip in ready:
            classifier.predict_frames(clip)

    def both() -> None:
        for _ in predict_all(classifier, videos, decoders=decoders):
            pass

    work: dict[str, Callable[[], None]] = {"decode": decode, "inference": infer, "predict": both}
    infer()  # warm
    seconds: Times = {name: [] for name in work}
    for turn in range(repeats):
        names = list(work)
        for name in names[turn % 3 :] + names[: turn % 3]:
            start, cpu = time.perf_counter(), time.process_time()
            work[name]()
            seconds[name].append((time.perf_counter() - start, time.process_time() - cpu))
    return seconds


def limit(decode: tuple[float, float], inference: tuple[float, float], cores: int, videos: int) -> float:
    """The most that a perfect overlap reaches of the slower, from (seconds, seconds of CPU) of each alone.

    Nothing overlaps with the first clip's decoding, nor with the last one's inference.
    """
    slower = max(decode[0], inference[0])
    edge = min(decode[0], inference[0]) / videos
    return slower / max(slower + edge, (decode[1] + inference[1]) / cores)


def find_videos(paths: Sequence[Path], most: int) -> list[Path]:
    """The videos, those below folders too; fewer than `most` are gone round again."""
    found = [
        file
        for path in paths
        for file in (sorted(f for f in path.rglob("*") if f.suffix.lower() in EXTENSIONS) if path.is_dir() else [path])
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
    parser.add_argument("--decoders", type=int, default=DECODERS, help="videos that are decoded at once; default: as in predict")
    asked = parser.parse_args(argv)
    videos = find_videos(asked.paths, asked.videos)
    with Classifier(Artifact.open(asked.artifact), device=asked.device, threads=asked.threads) as classifier:
        seconds = measure(classifier, videos, asked.repeats, asked.decoders)
    cores = len(os.sched_getaffinity(0))
    for name, times in seconds.items():
        rate, busy = (statistics.median(each) for each in ([len(videos) / t for t, _ in times], [c / t for t, c in times]))
        print(f"{name:9s}  {rate:8.1f} videos/s  {busy:5.2f} of {cores} cores")
    turns = list(zip(*seconds.values(), strict=True))
    ratios = [max(d[0], i[0]) / both[0] for d, i, both in turns]
    most = [limit(d, i, cores, len(videos)) for d, i, _ in turns]
    print(
        f"predict reaches {statistics.median(ratios):.2f} of the slower "
        f"({min(ratios):.2f}–{max(ratios):.2f}, {len(ratios)} repetitions)"
    )
    share = statistics.median(ratio / m for ratio, m in zip(ratios, most, strict=True))
    print(f"at most {statistics.median(most):.2f} is possible here (CPU seconds of both, on {cores} cores); {share:.2f} of that")


if __name__ == "__main__":
    reported(main)
