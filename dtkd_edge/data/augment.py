"""Training augmentation on uint8 RGB frames `[T, H, W, 3]`: one draw per clip, the same for all of its frames.

Frames are scaled by torch here, whose vectorised filter takes a third to a seventh of Pillow's time; `preprocess.py`, which
runs without torch too, has Pillow's. The two differ by one grey level at most, in about one value of 600.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dtkd_edge.recipe import AugmentConfig

Frame = NDArray[np.uint8]
Frames = NDArray[np.uint8]
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def working_side(size: int, config: AugmentConfig) -> int:
    """The short side at which the smallest random crop still has `size` pixels: more would be scaled away."""
    return math.ceil(size / math.sqrt(config.scale[0]))


def shrink(frame: Frame, short: int) -> Frame:
    """Scale a frame `[H, W, 3]` down to that short side; smaller ones stay as they are."""
    height, width = frame.shape[:2]
    if min(height, width) <= short:
        return frame
    to = (max(round(height * short / min(height, width)), short), max(round(width * short / min(height, width)), short))
    return resize(frame[None], to)[0]


def resize(frames: Frames, size: tuple[int, int]) -> Frames:
    """Scale `[T, H, W, 3]` to `[T, *size, 3]`, size = (height, width): bilinear, antialiased."""
    if frames.shape[1:3] == size:
        return frames
    whole = frames if frames.flags.c_contiguous and frames.flags.writeable else frames.copy()  # torch takes no others
    pixels = torch.from_numpy(whole).permute(0, 3, 1, 2)
    scaled = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    result: Frames = scaled.permute(0, 2, 3, 1).numpy()
    return result


def augment(frames: Frames, size: int, config: AugmentConfig, rng: np.random.Generator) -> Frames:
    """A random crop of each frame, scaled to `[T, size, size, 3]`, perhaps mirrored and recoloured.

    The crop's area is a share `scale` of the short side squared (what evaluation's centre crop is cut from), its aspect
    ratio log-uniform up to `ratio` either way, its place uniform over the whole frame.
    """
    frames = random_crop(frames, size, config, rng)
    if config.flip and rng.random() < 0.5:
        frames = frames[:, :, ::-1]
    if config.color > 0:
        frames = color_jitter(frames, config.color, rng)
    if config.rand_ops > 0:
        from dtkd_edge.data.rand_augment import rand_augment  # brings torchvision, which takes a second to import

        frames = rand_augment(frames, config.rand_ops, config.rand_magnitude, rng)
    return np.ascontiguousarray(frames)


def random_crop(frames: Frames, size: int, config: AugmentConfig, rng: np.random.Generator) -> Frames:
    height, width = frames.shape[1:3]
    area = rng.uniform(*config.scale) * min(height, width) ** 2
    ratio = math.exp(rng.uniform(-1, 1) * math.log(config.ratio))
    wide = min(max(round(math.sqrt(area * ratio)), 1), width)
    tall = min(max(round(math.sqrt(area / ratio)), 1), height)
    left, top = int(rng.random() * (width - wide + 1)), int(rng.random() * (height - tall + 1))
    return resize(frames[:, top : top + tall, left : left + wide], (size, size))


def color_jitter(frames: Frames, strength: float, rng: np.random.Generator) -> Frames:
    """Saturation, contrast (about the clip's mean grey) and brightness, each times 1 ± strength: one affine colour map."""
    saturation, contrast, brightness = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * _LUMA[:, None]  # columns are output channels
    pixels = frames.astype(np.float32)
    grey = float(pixels.mean((0, 1, 2)) @ _LUMA)
    pixels = pixels @ (matrix * (contrast * brightness)) + np.float32((1 - contrast) * brightness * grey)
    return (np.clip(pixels, 0, 255) + np.float32(0.5)).astype(np.uint8)
