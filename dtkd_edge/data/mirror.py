"""Classes that a mirrored clip would change into one another. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

_OPPOSITES = (("left", "right"), ("clockwise", "counterclockwise"), ("clockwise", "anticlockwise"), ("cw", "ccw"))


def flip_warning(flip: bool, classes: Mapping[str, list[str]]) -> list[str]:
    """A line where augment.flip is on and two classes of a head differ in nothing but left and right, or the sense of a turn."""
    pairs = [pair for names in classes.values() for pair in mirrored(names)] if flip else []
    if not pairs:
        return []
    more = f" (and {len(pairs) - 1} more such pairs)" if len(pairs) > 1 else ""
    return [
        f"classes {pairs[0][0]!r} and {pairs[0][1]!r}{more}: augment.flip mirrors half of the clips and keeps their labels; "
        "--set augment.flip=false"
    ]


def mirrored(names: list[str]) -> list[tuple[str, str]]:
    """Pairs of names of which one becomes the other when its left and right, or clockwise and counterclockwise, are swapped."""
    known = {_words(name): name for name in names}
    pairs = []
    for words, name in known.items():
        for one, other in _OPPOSITES:
            swap = {one: other, other: one}
            there = known.get(tuple(swap.get(word, word) for word in words), name)
            if name < there:
                pairs.append((name, there))
    return pairs


def _words(name: str) -> tuple[str, ...]:
    """'SwipeLeft', 'swipe_left' → swipe, left; 'turn counter-clockwise' → turn, counterclockwise."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    text = re.sub(r"(?<![a-z])(counter|anti)[\W_]+(?=clockwise)", r"\1", text)
    return tuple(word for word in re.split(r"[\W_]+", text) if word)
