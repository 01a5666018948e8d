"""Clips out of video files, by decord (installed from the package `decord2`). No torch.

Open a file inside the process that reads it: decoders do not survive a fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Full, Queue
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.decoder import awaited, bounded, open_reader, pixels
from dtkd_edge.errors import VideoError
from dtkd_edge.preprocess import Preprocess, Sampling

T = TypeVar("T")

DECODE_TIMEOUT_S = 60.0
CHUNK = 4  # frames that the decoder hands over at once, and how many such it may be ahead
AHEAD = 2
ALONE = 8  # frames at once, where nothing runs beside the decoder
CORES = len(os.sched_getaffinity(0))
EachFrame = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


class Source:
    """Frames by number, at a constant rate: what clips are cut out of. A video file here, a folder of pictures in frames.py.

    Subclasses set `path`, `frames` (how many) and `fps`, and implement `read`.
    """

    path: Path
    frames: int
    fps: float

    def __len__(self) -> int:
        return self.frames

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.frames / self.fps if self.fps > 0 else 0.0

    def span(self, start: float | None, end: float | None) -> tuple[int, int]:
        """First frame and number of frames of the part between two times in seconds; at least one frame."""
        if start is None and end is None:
            return 0, self.frames
        first = min(round((start or 0.0) * self.fps), self.frames - 1)
        last = self.frames if end is None else min(max(round(end * self.fps), first + 1), self.frames)
        return first, last - first

    def read(self, indices: NDArray[np.int64], each: EachFrame | None = None, *, last: bool = False) -> NDArray[np.uint8]:
        """uint8 RGB `[n, H, W, 3]` of the given frame numbers (repeats allowed); `each`: what to make of every frame; last: that
        nothing more is going to be read."""
        raise NotImplementedError

    def _unique(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The numbers in ascending order without repeats, and where each of `indices` is among them."""
        unique, inverse = np.unique(indices, return_inverse=True)
        if unique[0] < 0 or unique[-1] >= len(self):
            raise VideoError(f"{self.path}: frame {unique[-1]} asked for, it has {len(self)}")
        return unique, inverse


class Video(Source):
    """One open video file, turned upright as its rotation metadata says. Not thread-safe; raises VideoError for whatever does
    not decode.

    A file of variable frame rate is read as if it had its mean rate: frame i is the one that is shown at i / fps seconds. So
    sampling, and cutting by time, mean the same in every file.
    """

    def __init__(self, path: str | Path, *, data: bytes | None = None, timeout: float = DECODE_TIMEOUT_S) -> None:
        """data: the file's bytes, where they are at hand; `path` then only names it in messages."""
        self.path = Path(path)
        self.timeout = timeout
        self._open = partial(open_reader, self.path, data, timeout)
        self._reader: Any
        self._reader, seeks = self._open()
        self.frames = len(self._reader)
        if self.frames < 1:
            raise VideoError(f"{self.path}: no video frame", "re-encode the clip or take it out of the data set")
        self.fps = float(self._reader.get_avg_fps())
        times = self._times()
        # The frame that a forward reader is at; None: frames are jumped to. Where they have no times (h264 or B frames in .avi),
        # jumps land on other ones.
        self._next: int | None = None if seeks and times is not None else 0
        self._shown = None if times is None else self._variable_rate(times)

    def _times(self) -> NDArray[np.float64] | None:
        """Seconds `[frames, 2]` at which each frame comes and goes, where the container stores sane ones: not every avi does."""
        times = np.asarray(self._reader.get_frame_timestamp(range(self.frames)), np.float64)
        starts = times[:, 0] - times[0, 0]
        length = times[-1, 1] - times[0, 0]
        sane = np.isfinite(times).all() and (np.abs(times) < 1e9).all() and (np.diff(starts) > 0).all() and length > starts[-1]
        return times if sane else None

    def _variable_rate(self, times: NDArray[np.float64]) -> NDArray[np.int64] | None:
        """Which coded frame is shown at i / fps, where that is not the i-th. Sets `fps` to the mean rate in that case."""
        starts = times[:, 0] - times[0, 0]
        length = times[-1, 1] - times[0, 0]
        even = np.arange(self.frames) * (length / self.frames)
        if np.abs(starts - even).max() <= 1.5 * length / self.frames:  # rounded times, or a first frame that lasts longer
            return None
        self.fps = self.frames / length
        shown: NDArray[np.int64] = np.searchsorted(starts, even + 1e-6, side="right") - 1
        return shown

    def read(self, indices: NDArray[np.int64], each: EachFrame | None = None, *, last: bool = False) -> NDArray[np.uint8]:
        """uint8 RGB `[n, H, W, 3]` of the given frame numbers (repeats allowed).

        each: what to make of every frame, for example `preprocess.frame`; large frames are let go of at once. It runs beside the
        decoder, unless as many reads as there are cores are going on. last: the decoder is closed with the last frame, not
        left decoding ahead what nobody is going to read; a later read opens the file again.
        """
        unique, inverse = self._unique(indices)
        if self._shown is not None:
            unique, again = np.unique(self._shown[unique], return_inverse=True)
            inverse = again[inverse]
        if each is None:
            batch = self._bounded(lambda: np.stack(self._decode(unique, last)))
        else:
            with _reads as going_on:
                frames = self._ahead(unique, last) if going_on < CORES else self._one_by_one(unique, last)
                batch = np.stack([each(frame) for frame in frames])
        in_order = len(unique) == len(indices) and bool((np.diff(inverse) > 0).all())
        result: NDArray[np.uint8] = batch if in_order else batch[inverse]
        return result

    def _bounded(self, work: Callable[[], T]) -> T:
        """What `work` returns. A reader that goes forward to a frame far away has time as long as it gets on."""
        return bounded(work, self.path, self.timeout, lambda: self._next)

    def _one_by_one(self, numbers: NDArray[np.int64], last: bool) -> Iterator[NDArray[np.uint8]]:
        """The frames one by one, a few of them decoded at a time."""
        for at in range(0, len(numbers), ALONE):
            ends = at + ALONE >= len(numbers)
            yield from self._bounded(partial(self._decode, numbers[at : at + ALONE], last and ends))

    def _ahead(self, numbers: NDArray[np.int64], last: bool) -> Iterator[NDArray[np.uint8]]:
        """The frames one by one, decoded by a thread that is a few chunks ahead."""
        chunks = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
        done: Queue[list[NDArray[np.uint8]] | BaseException] = Queue(AHEAD)
        stop = threading.Event()

        def hand_over(item: list[NDArray[np.uint8]] | BaseException) -> None:
            while not stop.is_set():
                try:
                    return done.put(item, timeout=0.1)
                except Full:
                    continue

        def run() -> None:
            try:
                for number, chunk in enumerate(chunks, 1):
                    if stop.is_set():
                        return
                    hand_over(self._decode(chunk, last and number == len(chunks)))
            except BaseException as error:
                hand_over(error)

        threading.Thread(target=run, daemon=True, name="decode").start()
        try:
            for _ in chunks:
                yield from awaited(done, self.path, self.timeout, lambda: self._next)
        finally:
            stop.set()

    def _decode(self, numbers: NDArray[np.int64], last: bool = False) -> list[NDArray[np.uint8]]:
        """Frames `[H, W, 3]` in the decoder's own memory, not to be written to: its batches copy every pixel twice."""
        if self._reader is None:
            self._reader, _ = self._open()
        frames = [pixels(self._frame(int(number))) for number in numbers]
        if last:
            self._reader, self._next = None, None if self._next is None else 0
        return frames

    def _frame(self, number: int) -> Any:
        """The decoder's frame of that number: jumped to, or gone forward to where jumps do not land on it."""
        if self._next is None:
            return self._reader[number]
        if number < self._next:
            (self._reader, _), self._next = self._open(), 0
        frame = None
        while self._next <= number:
            frame = self._reader.next()
            self._next += 1
        return frame


class _Reads:
    """How many reads of this process are going on, `with` the own one."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def __enter__(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1


_reads = _Reads()


@contextmanager
def core_taken() -> Iterator[None]:
    """While something else, such as a model, keeps a core busy: where no other is idle, reads scale in no second thread."""
    with _reads:
        yield


def open_source(source: str | Path | Source, *, timeout: float = DECODE_TIMEOUT_S) -> Source:
    """The video of that path; what is open already stays as it is."""
    return source if isinstance(source, Source) else Video(source, timeout=timeout)


def read_clip(
    path: str | Path | Source,
    sampling: Sampling,
    *,
    rng: np.random.Generator | None = None,
    views: int = 1,
    start: float | None = None,
    end: float | None = None,
    timeout: float = DECODE_TIMEOUT_S,
) -> NDArray[np.uint8]:
    """Decoded frames of one clip: uint8 RGB `[views·frames, H, W, 3]` at the file's own size.

    start, end: seconds; the part of the file that the clip is taken from. rng: random sampling, as in training.
    """
    video = open_source(path, timeout=timeout)
    first, total = video.span(start, end)
    indices = first + sampling.indices(total, video.fps, rng=rng, views=views)
    return video.read(indices.reshape(-1), last=True)


def read_input(
    path: str | Path | Source,
    preprocess: Preprocess,
    *,
    temporal_views: int = 1,
    spatial_views: int = 1,
    start: float | None = None,
    end: float | None = None,
) -> NDArray[np.uint8]:
    """A video file, or its part from `start` to `end` in seconds, as model input. An open Source may stand for the path.

    uint8 RGB `[temporal_views·spatial_views, T, crop, crop, 3]`.
    """
    video = open_source(path)
    first, total = video.span(start, end)
    indices = first + preprocess.sampling.indices(total, video.fps, views=temporal_views)

    def crops(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.stack([preprocess.frame(frame, view, spatial_views) for view in range(spatial_views)])

    frames = video.read(indices.reshape(-1), crops, last=True)  # [temporal_views·T, spatial_views, crop, crop, 3]
    clips = frames.reshape(temporal_views, -1, *frames.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(clips.reshape(-1, *clips.shape[2:]))
