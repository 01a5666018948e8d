"""The camera of whoever opens the web page: JPEG pictures that the page sends over its WebSocket."""

from __future__ import annotations

import io
import threading

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dtkd_edge.deploy.camera import Source

MAX_PIXELS = 1920 * 1080


class BrowserSource(Source):
    """One slot: a picture that arrives while another is being decoded replaces it."""

    name = "browser"
    patient = True

    def __init__(self) -> None:
        self.refused = 0
        self._jpeg: bytes | None = None
        self._stamp: float | None = None
        self._news = threading.Condition()
        self._closed = False

    def open(self) -> None: ...

    def push(self, jpeg: bytes, stamp: float) -> None:
        """From the server: one picture, and the sender's clock when it was taken."""
        with self._news:
            self._jpeg, self._stamp = jpeg, stamp
            self._news.notify()

    def read(self) -> tuple[NDArray[np.uint8], float | None] | None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._jpeg is not None or self._closed)
                if self._closed:
                    return None
                jpeg, self._jpeg = self._jpeg, None
                stamp = self._stamp
            image = decode_jpeg(jpeg or b"")
            if image is not None:
                return image, stamp
            self.refused += 1

    def close(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()


def decode_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """uint8 RGB `[H, W, 3]`, or None for whatever is no JPEG of a sensible size: the sender is not trusted."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if image.width * image.height > MAX_PIXELS or min(image.size) < 16:
                return None
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        return None
