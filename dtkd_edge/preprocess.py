"""The one frame sampling, resize and crop, used by evaluation, calibration, verification, bench and demo alike.

Frames are uint8 RGB `[T, H, W, 3]` in and out. Normalisation and the change to channels-first are not done here: they
live inside the exported graph, so that no user can get them wrong. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Sampling(BaseModel):
    """Which frames of a video make one clip.

    uniform: the video is cut into `frames` equal segments and the middle frame of each is taken (TSN, TSM); independent of
             the frame rate. When training, a random frame of each segment.
    dense:   `frames` frames, `stride` apart (X3D, SlowFast, MViT), from the middle; when training, from a random start.
             With `fps` set, `stride` counts frames of a video resampled to that rate.
    A video shorter than the clip: dense holds its last frame (as PySlowFast), uniform repeats frames evenly (as TSM).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["uniform", "dense"] = "uniform"
    frames: int = Field(8, ge=1, le=512)
    stride: int = Field(1, ge=1, le=64)
    fps: float | None = Field(None, gt=0)

    def indices(
        self, total: int, fps: float | None = None, *, rng: np.random.Generator | None = None, views: int = 1
    ) -> NDArray[np.int64]:
        """Frame numbers `[views, frames]` in `0 … total-1`; `rng` given means training (one random view)."""
        if total < 1:
            raise ValueError("a clip needs at least one frame")
        if self.kind == "uniform":
            starts, lengths = _segments(total, self.frames)
            if rng is not None:
                where = (starts + rng.random(self.frames) * lengths)[None]
            else:  # views are spread inside each segment; one view is its middle
                offsets = (np.arange(views) + 0.5) / views
                where = (
                    starts + offsets[:, None] * lengths + 1e-9
                )  # a place that is a whole number may come out a little below it
            return np.minimum(np.floor(where), total - 1).astype(np.int64)
        room = max(total - 1 - self.span(fps), 0.0)
        if rng is not None:
            starts = np.array([rng.random() * room])
        else:
            starts = np.array([room / 2]) if views == 1 else np.linspace(0, room, views)
        return self._from(starts, total, fps)

    def span(self, fps: float | None = None) -> float:
        """From a dense clip's first frame to its last, in frames of a video of that rate."""
        return (self.frames - 1) * self._step(fps)

    def around(self, middle: float, total: int, fps: float | None = None) -> NDArray[np.int64]:
        """Frame numbers `[frames]` of a dense clip about that frame, moved where it would begin or end outside the video."""
        span = self.span(fps)
        start = min(max(middle - span / 2, 0.0), max(total - 1 - span, 0.0))
        return self._from(np.array([start]), total, fps)[0]

    def _step(self, fps: float | None) -> float:
        return self.stride * (fps / self.fps if self.fps and fps else 1.0)

    def _from(self, starts: NDArray[np.float64], total: int, fps: float | None) -> NDArray[np.int64]:
        where = starts[:, None] + np.arange(self.frames)[None] * self._step(fps)
        # Halves go up, all of them: to the nearest even number they would make steps of 5 into steps of 4 and 6.
        return np.clip(np.floor(where + 0.5), 0, total - 1).astype(np.int64)


@lru_cache
def _segments(total: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each of so many equal segments begins, and its length. Kept: most clips of a set have one of few lengths."""
    edges = np.linspace(0, total, count + 1)
    return edges[:-1], np.diff(edges)


class JointSampling(BaseModel):
    """Which frames of a video make one clip that several networks share.

    uniform: as many as the longest of them reads; the others take theirs evenly out of these (`fit_clip`).
    dense:   those of every network, one after the other, each with its own frames × stride about the same middle. The longest
             of them is placed as if it were alone.

    parts: the samplings that differ, in the order in which their frames come.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: tuple[Sampling, ...] = Field(..., min_length=1)

    @classmethod
    def of(cls, samplings: Iterable[Sampling]) -> JointSampling:
        """For networks of these samplings, which are all of one kind and rate."""
        wanted = tuple(dict.fromkeys(samplings))
        if wanted[0].kind == "uniform":
            return cls(parts=(max(wanted, key=lambda sampling: sampling.frames),))
        return cls(parts=wanted)

    @property
    def frames(self) -> int:
        return sum(part.frames for part in self.parts)

    def indices(self, total: int, fps: float | None = None, *, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
        """Frame numbers `[frames]` in `0 … total-1`, which `picks` shares out; `rng` given means training."""
        if len(self.parts) == 1:
            return self.parts[0].indices(total, fps, rng=rng)[0]
        longest, last = max(part.span(fps) for part in self.parts), total - 1
        start = max(last - longest, 0.0) * (0.5 if rng is None else rng.random())
        middle = start + min(longest, last) / 2
        return np.concatenate([part.around(middle, total, fps) for part in self.parts])

    def picks(self, frames: int, stride: int) -> slice:
        """Where among `indices` a network of that frames × stride finds its own."""
        if self.parts[0].kind == "uniform":
            return slice(None)
        start = 0
        for part in self.parts:
            if (part.frames, part.stride) == (frames, stride):
                return slice(start, start + part.frames)
            start += part.frames
        raise ValueError(f"no network of {frames} × {stride} shares this clip")


class Preprocess(BaseModel):
    """How frames become the model's input: the short side is scaled to `resize_short`, then `crop` × `crop` is cut out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resize_short: int = Field(..., ge=8, le=4096)
    crop: int = Field(..., ge=8, le=4096)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    sampling: Sampling

    @model_validator(mode="after")
    def _crop_fits(self) -> Preprocess:
        if self.crop > self.resize_short:
            raise ValueError(f"crop {self.crop} is larger than resize_short {self.resize_short}")
        return self

    def frame(self, image: NDArray[np.uint8], view: int = 0, views: int = 1) -> NDArray[np.uint8]:
        """One uint8 RGB frame `[H, W, 3]` → `[crop, crop, 3]`; `view` of `views` slides the crop along the long side."""
        height, width = image.shape[:2]
        side = min(height, width) * self.crop / self.resize_short
        at = 0.5 if views == 1 else view / (views - 1)
        wide = width >= height
        left = (width - side) * (at if wide else 0.5)
        top = (height - side) * (0.5 if wide else at)
        # Scaling only what the crop keeps gives the same pixels as scale-then-crop, for about half the work on 16:9.
        return resize_box(image, (left, top, left + side, top + side), (self.crop, self.crop), self.interpolation)

    def frames(self, images: NDArray[np.uint8], view: int = 0, views: int = 1) -> NDArray[np.uint8]:
        """uint8 RGB `[T, H, W, 3]` → `[T, crop, crop, 3]`."""
        return np.stack([self.frame(image, view, views) for image in images])


def resize_box(
    image: NDArray[np.uint8],
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    interpolation: str = "bilinear",
) -> NDArray[np.uint8]:
    """Scale the part `box` = (left, top, right, bottom) of `[H, W, 3]` to `size` = (width, height), antialiased."""
    height, width = image.shape[:2]
    if box == (0, 0, width, height) and size == (width, height):
        return image
    # Pillow copies what it is given: hand it the box and a margin for the filter, not the whole frame.
    margin = 2 + int(2 * max((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1], 1.0))
    x0, y0 = max(int(box[0]) - margin, 0), max(int(box[1]) - margin, 0)
    x1, y1 = min(int(np.ceil(box[2])) + margin, width), min(int(np.ceil(box[3])) + margin, height)
    part = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1]))
    inner = (max(box[0] - x0, 0.0), max(box[1] - y0, 0.0), min(box[2] - x0, x1 - x0), min(box[3] - y0, y1 - y0))
    return np.asarray(part.resize(size, INTERPOLATIONS[interpolation], box=inner))
