"""RandAugment (Cubuk et al., NeurIPS 2020) of clips: the same operations at the same strength for every frame.

The operations, their ranges and their 31 strengths are those of torchvision's `RandAugment`. That class draws from torch's global
generator, which the loader's threads share with training; here every draw comes from the clip's own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Frames = NDArray[np.uint8]
STRENGTHS = 30  # the largest; 0 is none
FILL = [124.0, 116.0, 104.0]  # what geometric operations uncover: ImageNet's mean colour


def _moved(video: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    out: Tensor = F.affine(video, 0.0, [int(x), int(y)], 1.0, [0.0, 0.0], F.InterpolationMode.BILINEAR, FILL)
    return out


def _sheared(video: Tensor, x: float = 0.0, y: float = 0.0) -> Tensor:
    """By slopes, about the upper left corner."""
    angles = [float(np.degrees(np.arctan(slope))) for slope in (x, y)]
    out: Tensor = F.affine(video, 0.0, [0, 0], 1.0, angles, F.InterpolationMode.BILINEAR, FILL, center=[0, 0])
    return out


# name → (signed: whether it goes either way, operation on uint8 `[T, 3, H, W]` and a strength in [-1, 1])
OPERATIONS: dict[str, tuple[bool, Callable[[Tensor, float], Tensor]]] = {
    "identity": (False, lambda v, s: v),
    "shear x": (True, lambda v, s: _sheared(v, x=0.3 * s)),
    "shear y": (True, lambda v, s: _sheared(v, y=0.3 * s)),
    "translate x": (True, lambda v, s: _moved(v, x=150 / 331 * s * v.shape[-1])),
    "translate y": (True, lambda v, s: _moved(v, y=150 / 331 * s * v.shape[-2])),
    "rotate": (True, lambda v, s: F.rotate(v, 30 * s, F.InterpolationMode.BILINEAR, fill=FILL)),
    "brightness": (True, lambda v, s: F.adjust_brightness(v, 1 + 0.9 * s)),
    "color": (True, lambda v, s: F.adjust_saturation(v, 1 + 0.9 * s)),
    "contrast": (True, lambda v, s: F.adjust_contrast(v, 1 + 0.9 * s)),
    "sharpness": (True, lambda v, s: F.adjust_sharpness(v, 1 + 0.9 * s)),
    "posterize": (False, lambda v, s: F.posterize(v, 8 - round(4 * s))),
    "solarize": (False, lambda v, s: F.solarize(v, 255 * (1 - s))),
    "auto contrast": (False, lambda v, s: F.autocontrast(v)),
    "equalize": (False, lambda v, s: F.equalize(v)),
}


def rand_augment(frames: Frames, count: int, magnitude: int, rng: np.random.Generator) -> Frames:
    """`count` operations, drawn with replacement, one after the other on uint8 RGB `[T, H, W, 3]`."""
    video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    names = list(OPERATIONS)
    for number in rng.integers(len(names), size=count):
        signed, operation = OPERATIONS[names[number]]
        sign = -1 if signed and rng.random() < 0.5 else 1
        video = operation(video, sign * magnitude / STRENGTHS)
    return np.ascontiguousarray(video.permute(0, 2, 3, 1).numpy())
