"""`dtkd-edge predict` and `dtkd-edge demo`."""

from __future__ import annotations

import json as jsonlib
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.console import counted, say
from dtkd_edge.decoder import EXTENSIONS
from dtkd_edge.deploy.classifier import Classifier, Prediction, is_artifact_or_run, load_newest
from dtkd_edge.deploy.demo import demo
from dtkd_edge.errors import InputError, UsageError, VideoError
from dtkd_edge.video import core_taken

__all__ = ["demo", "predict"]

DECODERS = 2  # threads that decode ahead of the inference
WAITING = 4  # decoded clips that may wait for it, so that it goes on while a video takes long to decode


def predict(paths: list[Path], *, json: bool = False, top: int = 5, device: str = "auto") -> None:
    """Labels of videos, one after the other, decoded ahead. A folder of videos stands for the videos in it.

    A video that does not decode is reported and the rest go on; at the end that is a VideoError (exit code 3).
    """
    first_is_model = _is_model(paths)
    given = {path: _videos(path) if path.is_dir() else [path] for path in paths[first_is_model:]}
    videos = [video for found in given.values() for video in found]
    for folder in (path for path, found in given.items() if not found):
        error = _no_videos(folder)
        if not videos:
            raise error
        say(error.message)
    if not videos:
        raise UsageError("no video to predict", "usage: dtkd-edge predict [ARTIFACT] VIDEO...")
    with load_newest(paths[:first_is_model], device=device) as classifier:
        say(str(classifier))
        broken = 0
        for video, result in predict_all(classifier, videos):
            if isinstance(result, VideoError):
                broken += 1
                say(f"broken: {result.message}")
            elif json:
                line = {"video": str(video), "artifact": str(classifier.artifact.folder), **result.to_json(top)}
                print(jsonlib.dumps(line, ensure_ascii=False), flush=True)
            else:
                _print(video, result, top)
    if broken:
        raise VideoError(
            f"{broken} of {counted(len(videos), 'video')} could not be read", "they are named above; re-encode or leave them out"
        )


def _is_model(paths: list[Path]) -> bool:
    """Whether the first path is the artefact: it holds one, or it can be no video while others follow (a mistyped artefact)."""
    first = paths[0]
    if is_artifact_or_run(first):
        return True
    video = first.is_file() or first.suffix.lower() in EXTENSIONS or (first.is_dir() and bool(_videos(first)))
    return len(paths) > 1 and not video


def _no_videos(folder: Path) -> InputError:
    inside = next((path for path in sorted(folder.iterdir()) if path.is_dir()), None)
    hint = "name a folder with videos in it" if inside is None else f"name the folders that hold videos, such as {inside}"
    return InputError(f"{folder}: no video in this folder; sub-folders are not searched", hint)


def _videos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)


def predict_all(
    classifier: Classifier, videos: list[Path], *, decoders: int = DECODERS
) -> Iterator[tuple[Path, Prediction | VideoError]]:
    """In the order given. At most a few clips are decoded ahead, so that memory does not grow with the list."""
    beside = core_taken() if len(videos) > 1 else nullcontext()  # nothing runs beside the decoding of a single one
    with ThreadPoolExecutor(decoders, thread_name_prefix="decode") as pool, beside:
        ahead: deque[tuple[Path, Future[NDArray[np.uint8]]]] = deque()
        waiting = iter(videos)

        def decode() -> None:
            while len(ahead) < decoders + WAITING and (video := next(waiting, None)) is not None:
                ahead.append((video, pool.submit(classifier.read, video)))

        decode()
        try:
            while ahead:
                video, clip = ahead.popleft()
                decode()  # before the inference, which the decoders must not have to wait for
                try:
                    probabilities = classifier.predict_frames(clip.result())
                except VideoError as error:
                    yield video, error
                    continue
                yield video, classifier.prediction({head: p[0] for head, p in probabilities.items()})
        finally:  # ended early, by Ctrl-C or a fault: what waits is not decoded any more
            for _, clip in ahead:
                clip.cancel()


def _print(video: Path, result: Prediction, top: int) -> None:
    print(video)
    for head in result.heads:
        if len(result.heads) > 1:
            print(f"  {head}")
        for score in result.top(top, head):
            bar = "█" * round(score.score * 20) if sys.stdout.isatty() else ""
            print(f"  {score.score:6.1%}  {score.label}  {bar}".rstrip())
    sys.stdout.flush()
