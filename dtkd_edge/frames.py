"""Clips out of folders of numbered pictures, as data sets of raw frames have them. No torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dtkd_edge.errors import VideoError
from dtkd_edge.video import EachFrame, Source


@dataclass(frozen=True)
class FrameRange:
    """first: the number in the first frame's name. count: how many frames; 0: all of the folder. fps: their rate."""

    first: int
    count: int
    fps: float


class FrameFolder(Source):
    """The frames of one clip; `path` is the folder with the pattern of their names, such as `clip/img_%05d.jpg`.

    Raises VideoError for a missing or unreadable folder, and for a frame that is missing, broken or of another size.
    """

    def __init__(self, path: Path, frames: FrameRange) -> None:
        self.path, self.fps = path, frames.fps
        self.first, self.frames = frames.first, frames.count
        if not frames.count:
            self.first, self.frames = self._count()

    def file(self, index: int) -> Path:
        """The file of frame 0 … len - 1."""
        return self.path.with_name(self.path.name % (self.first + index))

    def _count(self) -> tuple[int, int]:
        folder = self.path.parent
        before, after = re.split(r"%\d*d", self.path.name)
        try:
            names = os.listdir(folder)  # noqa: PTH208  (a folder may hold 100,000 frames)
        except OSError as error:
            raise VideoError(
                f"{folder}: no such folder of frames ({error.strerror})", "check data.root and data.videos"
            ) from error
        inner = (name[len(before) : len(name) - len(after)] for name in names if name.startswith(before) and name.endswith(after))
        numbers = [int(digits) for digits in inner if digits.isdecimal()]
        if not numbers:
            raise VideoError(f"{self.path}: no frame of that name", "check data.frame_names")
        return min(numbers), max(numbers) - min(numbers) + 1

    def read(self, indices: NDArray[np.int64], each: EachFrame | None = None, *, last: bool = False) -> NDArray[np.uint8]:
        """See Source.read."""
        unique, inverse = self._unique(indices)
        read = [self._picture(int(index)) for index in unique]
        if any(frame.shape != read[0].shape for frame in read):
            raise VideoError(f"{self.path}: its frames have different sizes", "extract them again")
        frames: NDArray[np.uint8] = np.stack(read if each is None else [each(frame) for frame in read])[inverse.reshape(-1)]
        return frames

    def _picture(self, index: int) -> NDArray[np.uint8]:
        file = self.file(index)
        try:
            with Image.open(file) as picture:
                return np.asarray(picture.convert("RGB"))
        except FileNotFoundError as error:
            raise VideoError(f"{file}: no such frame", "extract the clip again, or leave it out") from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = str(error).partition(f" {str(file)!r}")[0]
            raise VideoError(f"{file}: not a picture: {reason}", "extract the clip again, or leave it out") from error
