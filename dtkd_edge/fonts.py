"""Letters for the pictures drawn here: labels may be of any script, and Pillow's own font has little beside ASCII. No torch."""

from __future__ import annotations

import subprocess
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, lru_cache

from PIL import ImageFont

from dtkd_edge.console import say

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

OWN = ""  # Pillow's
USUAL = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc")  # found by name, where there is no fontconfig
BESIDE = frozenset("aZ09%.")  # what stands beside a label has to be in its font too
NAMED = 3


def font_for(text: str, size: float) -> Font:
    """Pillow's own font where it has all letters of the text, or else the installed one that lacks fewest of them."""
    return _sized(_file_for(_lacking(OWN, text)), size)


def say_boxes(labels: Iterable[str]) -> None:
    """One line where some of these cannot be drawn on this machine."""
    boxes = [label for label in labels if _lacking(_file_for(_lacking(OWN, label)), label)]
    if boxes:
        more = f" and {len(boxes) - NAMED} more" if len(boxes) > NAMED else ""
        say(f"no font here has all letters of {', '.join(boxes[:NAMED])}{more}: boxes are drawn; install one, such as fonts-noto")


@lru_cache(256)
def _sized(file: str, size: float) -> Font:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size=size)


_found: list[
    str
] = []  # fonts that had all letters of a label: of a script's next one too, most likely, without asking the system


@cache
def _file_for(letters: frozenset[str]) -> str:
    """The font that lacks fewest of some letters that Pillow's own lacks; that one where no other has more."""
    if not letters:
        return OWN
    wanted = "".join(letters | BESIDE)
    if known := next((file for file in _found if not _lacking(file, wanted)), None):
        return known
    found = [OWN]
    for file in (_fontconfig(letters), *USUAL):
        with suppress(OSError):  # not here, or no font that Pillow reads
            _sized(file, 10)
            found.append(file)
    best = min(found, key=lambda file: len(_lacking(file, wanted)))
    if not _lacking(best, wanted):
        _found.append(best)
    return best


def _fontconfig(letters: frozenset[str]) -> str:
    """What the system would take for these letters."""
    wanted = " ".join(f"{ord(letter):x}" for letter in sorted(letters))
    try:
        call = ["fc-match", "--format=%{file}", f":charset={wanted}"]
        return subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # no fontconfig
        return OWN


def _lacking(file: str, text: str) -> frozenset[str]:
    return frozenset(letter for letter in set(text) if not _has(file, letter))


@cache
def _has(file: str, letter: str) -> bool:
    """A letter that a font lacks looks like what no font has. Spaces and marks without a look of their own are never missed."""
    return unicodedata.category(letter)[0] in "CZ" or _looks(file, letter) != _looks(file, "\uffff")


def _looks(file: str, letter: str) -> bytes:
    return bytes(_sized(file, 20).getmask(letter))
