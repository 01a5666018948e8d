"""Label, probability, age and frame rate drawn into the picture, for recordings and the window."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dtkd_edge.deploy.live import Live
from dtkd_edge.fonts import font_for

BAND = 0.16  # of the picture's height
BLACK, WHITE, GREEN = (8, 11, 15), (255, 255, 255), (84, 214, 150)


def draw(image: NDArray[np.uint8], live: Live | None, fps: float | None) -> NDArray[np.uint8]:
    """uint8 RGB `[H, W, 3]` with a band at its lower edge → a new array; the frame itself is shared and never written to.

    fps: None where age and rate mean nothing, because the source is read as fast as it goes.
    """
    height, width = image.shape[:2]
    band = max(int(height * BAND), 24)
    out = image.copy()
    out[-band:] = (out[-band:].astype(np.uint16) * 2 // 7).astype(np.uint8)  # darkened, so that text can be read on any picture
    picture = Image.fromarray(out)
    pen = ImageDraw.Draw(picture)
    middle = height - band / 2
    pad = band * 0.35
    right = "" if live is None or fps is None else f"{live.age * 1000:.0f} ms  {fps:.0f} fps"
    small = font_for(right, max(band * 0.3, 10))
    room = width - 2 * pad - (pen.textlength(right, font=small) + pad if right else 0)
    if right:
        pen.text((width - pad, middle), right, WHITE, font=small, anchor="rm")
    certain = live.certain if live else []
    words = " · ".join(f"{held.label}  {held.score:.0%}" for held in certain) or ("nothing certain" if live else "…")
    size = band * 0.5
    while pen.textlength(words, font=font_for(words, size)) > room and size > 8:
        size *= 0.9
    pen.text((pad, middle), words, GREEN if certain else WHITE, font=font_for(words, size), anchor="lm")
    if certain:
        pen.rectangle((0, height - 3, width * certain[0].score, height), GREEN)
    return np.asarray(picture)
