"""The last seconds of a live picture, and the clip that a model wants out of them."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.errors import UsageError
from dtkd_edge.preprocess import Sampling

CLIP_SECONDS = 2.0  # of a uniformly sampled clip: such a manifest knows no time, and training clips last a few seconds
ASSUMED_FPS = 30.0  # of the videos behind a dense manifest without a frame rate


def frame_spacing(sampling: Sampling, clip_seconds: float | None = None) -> float:
    """Seconds between two frames of a live clip, so that it spans what a training clip spans."""
    if clip_seconds is not None:
        if clip_seconds <= 0:
            raise UsageError(f"--clip-seconds {clip_seconds:g}: must be above 0", "2 is usual")
        return clip_seconds / sampling.frames
    if sampling.kind == "uniform":
        return CLIP_SECONDS / sampling.frames
    return sampling.stride / (sampling.fps or ASSUMED_FPS)


class Window:
    """A ring of preprocessed frames with their capture times.

    A clip is T frames that end with the newest one and lie `spacing` seconds apart, each the nearest in time that there is:
    sampling by time stamps gives the same clip at 10 and at 60 frames a second, and when frames were dropped.
    """

    def __init__(self, frames: int, spacing: float) -> None:
        self.frames, self.spacing = frames, spacing
        self.span = (frames - 1) * spacing
        self._ring: deque[tuple[float, NDArray[np.uint8]]] = deque()

    def add(self, time: float, frame: NDArray[np.uint8]) -> None:
        """After a gap longer than the clip, or a step back in time, what was before is forgotten."""
        if self._ring:
            gap = time - self._ring[-1][0]
            if gap < 0 or gap > max(self.span, 1.0) or frame.shape != self._ring[-1][1].shape:
                self._ring.clear()
        self._ring.append((time, frame))
        while len(self._ring) > 2 and self._ring[1][0] <= time - self.span:  # one older than the span stays
            self._ring.popleft()

    @property
    def filled(self) -> float:
        """How much of the clip's span there is by now, 0 … 1."""
        if not self._ring:
            return 0.0
        return min((self._ring[-1][0] - self._ring[0][0]) / self.span, 1.0) if self.span > 0 else 1.0

    @property
    def newest(self) -> float:
        return self._ring[-1][0]

    def picks(self) -> list[int]:
        """Positions in the ring of the clip's frames, in time order; the oldest is repeated where there is no older one."""
        times = [time for time, _ in self._ring]
        out = []
        for step in range(self.frames - 1, -1, -1):
            want = times[-1] - step * self.spacing
            at = bisect_left(times, want)
            nearer_before = at == len(times) or (at > 0 and want - times[at - 1] <= times[at] - want)
            out.append(at - 1 if nearer_before else at)
        return out

    def clip(self) -> NDArray[np.uint8]:
        """uint8 RGB `[T, crop, crop, 3]`."""
        return np.stack([self._ring[i][1] for i in self.picks()])
