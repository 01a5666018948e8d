"""One generated clip: a textured polygon that moves, turns or grows over a smooth background.

Only motion tells the classes apart, by construction and not by luck: the world is a torus. Position wraps at the picture's
border, angle at a full turn, and log-size at the ends of its range (a growing object that reaches the largest size goes on
from the smallest). So position, angle and size are uniformly distributed at every instant, in every class, and a single
frame, the first and the last included, has the same distribution whatever the label. Inside a bounded world this cannot be
had: what moves right ends further right on average.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MOTIONS = ["left", "right", "up", "down", "clockwise", "counterclockwise", "zoom-in", "zoom-out"]
# Each motion stands in two of these pairs, and each pair gives two classes, A then B and B then A: the same two motions,
# in the other order.
_RING = ["left", "up", "clockwise", "right", "zoom-in", "down", "counterclockwise", "zoom-out", "left"]
ORDERS = [f"{a}-then-{b}" for pair in pairwise(_RING) for a, b in (pair, pair[::-1])]
CLASSES = {"motion": MOTIONS, "order": ORDERS}

# Over a whole clip, so that it does not matter how many frames it has or how many are sampled.
SHIFT = (0.3, 0.5)  # of the picture's side
TURN = (2.0, 3.4)  # radians
GROWTH = (0.55, 0.8)  # of the logarithm of the size
ORDER_GAIN = 1.4  # each half of an order clip is that much quicker

DIAMETER = (0.28, 0.7)  # of the picture's side; all classes use the whole range
FRAMES = (12, 24)
FPS = (10, 30)
JITTER = 0.3  # camera, standard deviation in pixels
NOISE = 0.015  # sensor, standard deviation as a share of the range

# x and y in sides, angle in radians (clockwise on screen, where y points down), log-size
_DIRECTION = {
    "left": (-1, 0, 0, 0),
    "right": (1, 0, 0, 0),
    "up": (0, -1, 0, 0),
    "down": (0, 1, 0, 0),
    "clockwise": (0, 0, 1, 0),
    "counterclockwise": (0, 0, -1, 0),
    "zoom-in": (0, 0, 0, 1),
    "zoom-out": (0, 0, 0, -1),
}
Floats = NDArray[np.float32]


def render(kind: str, label: int, rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], int]:
    """The clip of one label: uint8 RGB `[n, size, size, 3]` with 12 to 24 frames, and its frame rate."""
    frames = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    fps = int(rng.integers(FPS[0], FPS[1] + 1))
    path = _path(CLASSES[kind][label].split("-then-"), frames, rng)
    return _draw(path, size, rng), fps


def _path(motions: list[str], frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """x, y, angle and log-size at every frame: `[n, 4]`; x and y in sides."""
    time = np.linspace(0.0, 1.0, frames)
    low, high = np.log(DIAMETER)
    state = np.array([rng.random(), rng.random(), rng.random() * 2 * np.pi, low + rng.random() * (high - low)])
    ends = [0.0, 1.0] if len(motions) == 1 else [0.0, rng.uniform(0.45, 0.55), 1.0]
    path = np.tile(state, (frames, 1))
    for motion, (start, end) in zip(motions, pairwise(ends), strict=True):
        pace = np.array([rng.uniform(*SHIFT), 0.0, rng.uniform(*TURN), rng.uniform(*GROWTH)])
        pace[1] = pace[0]
        gain = ORDER_GAIN if len(motions) > 1 else 1.0
        path += np.clip(time - start, 0, end - start)[:, None] * pace * gain * np.array(_DIRECTION[motion])
    path[:, 3] = low + np.mod(path[:, 3] - low, high - low)
    return path


def _draw(path: NDArray[np.float64], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    camera = rng.normal(0, JITTER / size, (len(path), 2))
    grid = (np.arange(size) + 0.5) / size
    x = (grid[None, :] + camera[:, :1]).astype(np.float32)  # [n, size]: columns, where the camera looks
    y = (grid[None, :] + camera[:, 1:]).astype(np.float32)

    tone = rng.uniform(0.35, 0.65)
    picture = _background(x, y, tone, rng)

    # Into the object's own coordinates: nearest copy on the torus, turned back, its radius 1.
    dx = np.mod(x - path[:, :1].astype(np.float32) + 0.5, 1.0)[:, None, :] - np.float32(0.5)
    dy = np.mod(y - path[:, 1:2].astype(np.float32) + 0.5, 1.0)[:, :, None] - np.float32(0.5)
    radius = np.exp(path[:, 3]) / 2
    cos = (np.cos(path[:, 2]) / radius).astype(np.float32)[:, None, None]
    sin = (np.sin(path[:, 2]) / radius).astype(np.float32)[:, None, None]
    u = cos * dx + sin * dy
    v = cos * dy - sin * dx

    inside = _inside(u, v, rng)
    cover = np.clip(inside * (radius * size).astype(np.float32)[:, None, None] + np.float32(0.5), 0, 1)[..., None]
    picture += cover * (_texture(u, v, tone, rng) - picture)
    picture += rng.standard_normal((len(path), size, size, 1), dtype=np.float32) * np.float32(NOISE)
    return (np.clip(picture, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _background(x: Floats, y: Floats, tone: float, rng: np.random.Generator) -> Floats:
    """Smooth and of low contrast; whole periods, so that it too lives on the torus. `[n, size, size, 3]`."""
    tint = (tone + rng.uniform(-0.06, 0.06, 3)).astype(np.float32)
    field = np.zeros((len(x), y.shape[1], x.shape[1]), np.float32)
    for _ in range(2):
        across, down = rng.integers(-2, 3, 2)
        wave_x = np.exp(2j * np.pi * (across * x + rng.random())).astype(np.complex64)
        wave_y = np.exp(2j * np.pi * down * y).astype(np.complex64)
        field += np.float32(rng.uniform(0.01, 0.04)) * (wave_y[:, :, None] * wave_x[:, None, :]).real
    picture: Floats = field[..., None] + tint
    return picture


def _inside(u: Floats, v: Floats, rng: np.random.Generator) -> Floats:
    """Signed distance to a random convex polygon inside the unit circle, positive inside."""
    corners = int(rng.integers(3, 7))
    angles = (np.arange(corners) + rng.uniform(-0.25, 0.25, corners)) * 2 * np.pi / corners
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.85, 1.0, (corners, 1))
    edges = np.roll(points, -1, 0) - points
    normals = np.stack([edges[:, 1], -edges[:, 0]], 1) / np.linalg.norm(edges, axis=1, keepdims=True)
    inside = np.full(u.shape, np.inf, np.float32)
    for (nx, ny), (px, py) in zip(normals.astype(np.float32), points.astype(np.float32), strict=True):
        np.minimum(inside, (nx * px + ny * py) - nx * u - ny * v, out=inside)
    return inside


def _texture(u: Floats, v: Floats, tone: float, rng: np.random.Generator) -> Floats:
    """Two coloured waves across the object, on a tone that stands off the background. `[n, size, size, 3]`."""
    sign = 1.0 if rng.random() < 0.5 else -1.0
    colour = (tone + sign * rng.uniform(0.12, 0.3) + rng.uniform(-0.08, 0.08, 3)).astype(np.float32)
    picture = np.broadcast_to(colour, (*u.shape, 3)).copy()
    for _ in range(2):
        angle, pitch, phase = rng.random() * 2 * np.pi, rng.uniform(2.0, 4.0), rng.random() * 2 * np.pi
        wave = np.sin(np.float32(pitch * np.cos(angle)) * u + np.float32(pitch * np.sin(angle)) * v + np.float32(phase))
        picture += wave[..., None] * rng.uniform(-0.16, 0.16, 3).astype(np.float32)
    return picture
