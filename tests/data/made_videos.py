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


def numbered(count: int) -> np.ndarray:
    """Frames `[count, 32, 32, 3]`, count ≤ 256, that show their number: eight stripes, white where the number has that bit."""
    bits = np.arange(count)[:, None] >> np.arange(8) & 1
    return (np.repeat(bits, 4, 1)[:, None, :, None] * np.ones((1, 32, 1, 3)) * 255).astype(np.uint8)


def write_numbered(path: Path, count: int, codec: str, *, muxer: dict[str, str] | None = None, **options: str) -> None:
    """A file of such frames in the container that its ending names: 128 × 128, under noise of over 4 KB a frame, as in videos of
    an ordinary bitrate."""
    import av

    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for frame in numbered(count).repeat(4, 1).repeat(4, 2):
            noisy = (40 + frame * (175 / 255) + rng.integers(-40, 41, (128, 128, 1))).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
        container.mux(stream.encode(None))


def numbers_shown(pictures: np.ndarray) -> np.ndarray:
    """The numbers `[…]` that pictures `[…, H, W, 3]` of such frames show, in [0, 1], whole and at any multiple of 8 pixels."""
    columns = pictures.mean((-3, -1))
    stripes = columns.reshape(*columns.shape[:-1], 8, -1).mean(-1)
    return ((stripes > 0.5) << np.arange(8)).sum(-1)
