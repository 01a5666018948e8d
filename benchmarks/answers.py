"""What an artefact answered clip by clip, kept while its accuracy is measured: an interruption costs no answer. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.deploy.backends import Backend
from dtkd_edge.files import cache_folder

UNKNOWN = -1  # the place of a label that is not among the artefact's


class Answer(NamedTuple):
    """Of one head. top: the class number with the highest logit; place: that of the label, 0 the highest, or UNKNOWN."""

    top: int
    place: int


Answers = dict[str, Answer]  # by head


def answer(logits: NDArray[np.float32], label: int) -> Answer:
    """From logits `[K]` and a label among them (or UNKNOWN).

    Ties count against the model, and so does what is not a number: a constant or broken output must not look right.
    """
    place = UNKNOWN if label < 0 else int((~(logits < logits[label])).sum()) - 1
    return Answer(int(np.argmax(logits)), place)


def journal_path(backend: Backend, tools: Mapping[str, str], data: str) -> Path:
    """One file for everything that an answer depends on; data: a digest of the clips and their labels."""
    parts = [backend.artifact.manifest.sha256, backend.device, backend.effective_precision, dict(tools), data]
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "bench" / f"accuracy-{name}.jsonl"


class Journal:
    """Answers by number of the clip, appended to as they come. state: numbers that change when the clip's file does.

    fresh: forget what is there. Without a path, or where none can be written, nothing outlasts the process.
    """

    def __init__(self, path: Path | None = None, *, fresh: bool = False) -> None:
        self.path = path
        self._kept: dict[int, tuple[list[int], Answers]] = {}
        self._broken = path is None
        if fresh:
            self.remove()
        if path is not None and path.is_file():
            with suppress(OSError, UnicodeDecodeError):
                self._read(path)

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                number, state, found = json.loads(line)
                self._kept[int(number)] = (state, {head: Answer(*map(int, pair)) for head, pair in found.items()})
            except (ValueError, TypeError, AttributeError):  # a kill in the middle of a line
                continue

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, number: int, state: list[int]) -> Answers | None:
        """The answers to a clip, or None: not asked yet, or its file has changed since."""
        kept = self._kept.get(number)
        return kept[1] if kept is not None and kept[0] == state else None

    def add(self, number: int, state: list[int], found: Answers) -> None:
        self._kept[number] = (state, found)
        if self.path is None or self._broken:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write("\n" + json.dumps([number, state, found]) + "\n")  # a kill may have left half a line
        except OSError:  # a full disk is no reason not to measure
            self._broken = True

    def remove(self) -> None:
        """The answers have become a row: they are not needed any more."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
