"""The contact sheet: a picture with the middle frames of a few clips of every class. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dtkd_edge.console import counted
from dtkd_edge.data.catalogue import Catalogue, Clip
from dtkd_edge.errors import VideoError
from dtkd_edge.files import atomic_path
from dtkd_edge.fonts import font_for, say_boxes
from dtkd_edge.preprocess import resize_box

CLIPS = 6  # of each class
CLASSES = 60  # most rows; of more classes, evenly chosen ones are shown
THUMB = (128, 96)
NAME = 220  # pixels of a row's name


def write_sheet(path: Path, catalogue: Catalogue, usable: Callable[[Clip], bool] = lambda clip: True) -> None:
    """One row per class of the first head. Clips that do not decode, or are not usable, are passed over."""
    head, names = next(iter(catalogue.classes.items()))
    shown = np.unique(np.linspace(0, len(names) - 1, min(CLASSES, len(names))).round().astype(int))
    width, height = THUMB
    picture = Image.new("RGB", (NAME + CLIPS * (width + 4) + 4, len(shown) * (height + 4) + 4), "white")
    draw = ImageDraw.Draw(picture)
    say_boxes(names[number] for number in shown)
    labels = catalogue.labels(head)
    for row, number in enumerate(shown):
        top = 4 + row * (height + 4)
        members = np.flatnonzero(labels == number)
        name, count = names[number], counted(len(members), "clip")
        font = font_for(name, 14)
        while len(name) > 1 and font.getlength(name) > NAME - 12:
            name = name[:-2] + "…"
        draw.text((8, top + height / 2 - 10), name, fill="black", font=font, anchor="lm")
        draw.text((8, top + height / 2 + 10), count, fill="gray", font=font_for(count, 11), anchor="lm")
        for column, thumb in enumerate(_thumbs(catalogue, members, usable)):
            picture.paste(thumb, (NAME + column * (width + 4), top))
    with atomic_path(path) as aside:
        picture.save(aside, format="PNG")


def _thumbs(catalogue: Catalogue, members: NDArray[np.int64], usable: Callable[[Clip], bool]) -> list[Image.Image]:
    """Of clips spread over the class; as many more are tried as there are unusable ones."""
    thumbs: list[Image.Image] = []
    spread = members[np.unique(np.linspace(0, len(members) - 1, 4 * CLIPS).astype(int))] if len(members) else members
    for index in np.concatenate([spread[start::4] for start in range(4)]):
        if len(thumbs) == CLIPS:
            break
        clip = catalogue[int(index)]
        if not usable(clip):
            continue
        try:
            source = clip.open()
            first, total = source.span(clip.start, clip.end)
            frame = source.read(np.array([first + total // 2]))[0]
        except VideoError:
            continue
        thumbs.append(_fit(frame))
    return thumbs


def _fit(frame: NDArray[np.uint8]) -> Image.Image:
    """A frame cut to the thumb's shape about its middle."""
    height, width = frame.shape[:2]
    wide = min(width, height * THUMB[0] / THUMB[1])
    tall = wide * THUMB[1] / THUMB[0]
    left, top = (width - wide) / 2, (height - tall) / 2
    return Image.fromarray(resize_box(frame, (left, top, left + wide, top + tall), THUMB))
