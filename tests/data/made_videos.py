"""Video files and frames that tests make."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def pattern(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured frames that differ from each other, so that codecs keep them nearly as they are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width) * 2 * np.pi
    t = np.arange(count)[:, None, None]
    waves = [np.sin(rng.uniform(0.5, 2) * x + rng.uniform(0.5, 2) * y + 0.4 * t + rng.uniform(0, 6)) for _ in range(3)]
    frames: np.ndarray = (127 + 90 * np.stack(waves, -1)).astype(np.uint8)
    return frames


def zero_frames(path: Path) -> None:
    """A whole mp4 file with a video stream that has no frame in it."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
