"""A textured shape that moves left, right, up, down, turns and zooms in turn: a source for machines without a camera."""

from __future__ import annotations

import threading
import time

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.deploy.camera import Source
from dtkd_edge.deploy.sources import SourceOptions

SEGMENT_S = 4.0  # how long each motion lasts
# x and y in picture heights per second, turn in radians per second, growth of the log-size per second
MOTIONS = {
    "left": (-0.17, 0.0, 0.0, 0.0),
    "right": (0.17, 0.0, 0.0, 0.0),
    "up": (0.0, -0.17, 0.0, 0.0),
    "down": (0.0, 0.17, 0.0, 0.0),
    "clockwise": (0.0, 0.0, 1.15, 0.0),
    "counterclockwise": (0.0, 0.0, -1.15, 0.0),
    "zoom-in": (0.0, 0.0, 0.0, 0.26),
    "zoom-out": (0.0, 0.0, 0.0, -0.26),
}
DIAMETER = (0.26, 0.62)  # of the picture's height; growth starts again at the other end


class PatternSource(Source):
    name = "pattern"

    def __init__(self, options: SourceOptions) -> None:
        self.width, self.height = options.width or 320, options.height or 240
        self.fps = options.fps or 30.0
        self._stop = threading.Event()
        self._start = 0.0
        self._number = 0

    def open(self) -> None:
        self._start, self._number = time.monotonic(), 0

    def read(self) -> tuple[NDArray[np.uint8], float | None] | None:
        now = time.monotonic() - self._start
        self._number = max(self._number + 1, int(now * self.fps))  # a slow machine skips pictures, it does not run late
        if self._stop.wait(max(self._number / self.fps - now, 0)):
            return None
        return draw(self._number / self.fps, self.width, self.height), None

    def close(self) -> None:
        self._stop.set()


def motion_at(seconds: float) -> str:
    """Which motion the pattern shows at that time."""
    return list(MOTIONS)[int(seconds / SEGMENT_S) % len(MOTIONS)]


def draw(seconds: float, width: int, height: int) -> NDArray[np.uint8]:
    """The picture at a time since the start: uint8 RGB `[height, width, 3]`. The same time gives the same picture."""
    x, y, angle, log_size = _state(seconds)
    low, high = np.log(DIAMETER)
    radius = np.float32(np.exp(low + np.mod(log_size, high - low)) / 2)
    rows = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    columns = ((np.arange(width, dtype=np.float32) + 0.5 - (width - height) / 2) / height)[None]
    ground = 0.45 + 0.05 * np.sin(2 * np.pi * (columns + 0.3)) * np.cos(2 * np.pi * rows)
    picture = ground[..., None] + np.array([-0.03, 0.0, 0.04], np.float32)
    # Nearest copy of the shape: it leaves on one side and comes in on the other.
    dx = np.mod(columns - x + 0.5, 1.0) - 0.5
    dy = np.mod(rows - y + 0.5, 1.0) - 0.5
    cos, sin = np.float32(np.cos(angle)) / radius, np.float32(np.sin(angle)) / radius
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    corners = np.arange(3) * 2 * np.pi / 3
    inside = np.min([0.5 - np.cos(a) * u - np.sin(a) * v for a in corners.astype(np.float32)], axis=0)
    cover = np.clip(inside * radius * height + 0.5, 0, 1)[..., None]
    wave = np.sin(3.1 * u + 1.7 * v)[..., None] * np.array([0.14, 0.1, -0.08], np.float32)
    shape = wave + np.array([0.76, 0.66, 0.52], np.float32)
    return np.asarray(np.clip(picture + cover * (shape - picture), 0, 1) * 255, np.uint8)


def _state(seconds: float) -> NDArray[np.float64]:
    """x, y, angle, log-size: the sum of all motions so far."""
    paces = np.array(list(MOTIONS.values()))
    rounds, rest = divmod(seconds, SEGMENT_S * len(paces))
    done = np.clip(rest - np.arange(len(paces)) * SEGMENT_S, 0, SEGMENT_S)
    moved = paces.T @ done + rounds * SEGMENT_S * paces.sum(0)
    return np.asarray(moved + np.array([0.5, 0.5, 0.4, 0.3]))
