"""Frames into h264 mp4 files, by PyAV. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.errors import MissingDependency


def require_av() -> None:
    """Raises MissingDependency where PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependency("writing video needs the Python library av", extra="train") from error


def encode(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    size: tuple[int, int],
    fps: float | Fraction,
    *,
    crf: int = 20,
    preset: str = "ultrafast",
    keyframes: int = 1,
) -> int:
    """uint8 RGB frames `[H, W, 3]` (`size` = (width, height), both even) → an mp4 file; returns how many frames there were.

    keyframes: frames from one that is coded by itself to the next: few make small files, many are quick to jump in. One thread:
    callers write several files at a time.
    """
    import av

    rate = Fraction(fps).limit_denominator(1001)  # 29.97 is 30000/1001
    count = 0
    with av.open(str(path), "w", format="mp4") as container:
        options = {"preset": preset, "crf": str(crf), "threads": "1", "g": str(keyframes)}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        container.mux(stream.encode())
    return count
