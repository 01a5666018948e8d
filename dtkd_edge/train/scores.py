"""Scores from logits and labels: top-k, mean class accuracy, confusion, EPIC-KITCHENS' actions. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.data.pairs import PAIR, Floats, Ints, pair_ranks
from dtkd_edge.files import atomic_path, write_text

if TYPE_CHECKING:
    from PIL.Image import Image

Mask = NDArray[np.bool_]


@dataclass
class Scores:
    """Per head: logits `[n, K]` (or log-probabilities) and labels `[n]`, in the catalogue's order; broken clips are left out, and
    said in `broken`. index: the clips' numbers in the catalogue."""

    logits: Mapping[str, Floats]
    labels: Mapping[str, Ints]
    broken: list[str] = field(default_factory=list)
    index: Ints | None = None

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """Of several parts of a catalogue, in their order."""
        heads = parts[0].logits
        numbers = [part.index for part in parts if part.index is not None]
        return cls(
            {head: np.concatenate([part.logits[head] for part in parts]) for head in heads},
            {head: np.concatenate([part.labels[head] for part in parts]) for head in heads},
            [why for part in parts for why in part.broken],
            np.concatenate(numbers) if len(numbers) == len(parts) else None,
        )

    def __len__(self) -> int:
        return len(next(iter(self.labels.values())))

    def ranks(self, head: str) -> Ints:
        """Place of every clip's label among the logits, 0 the highest; of equal ones the lower class number stands first.
        `action`, where the heads are verb and noun: the place of the pair (see pair_ranks)."""
        if head == "action" and head not in self.logits:
            verb, noun = PAIR
            return pair_ranks(self.logits[verb], self.logits[noun], self.labels[verb], self.labels[noun])
        logits, labels = self.logits[head], self.labels[head]
        own = np.take_along_axis(logits, labels[:, None], 1)
        lower = np.arange(logits.shape[1]) < labels[:, None]
        # `not below`, so that what is not a number never makes a label look right
        before = ~(logits < own) & ~((logits == own) & ~lower)
        return before.sum(1).astype(np.int64)

    def accuracy(self, head: str, k: int = 1) -> float:
        """Share of clips whose label is among the k highest logits."""
        return _share(self.ranks(head) < k)

    @property
    def heads(self) -> list[str]:
        """The model's heads, and `action` where they are verb and noun."""
        return [*self.logits, *(["action"] if set(PAIR) == set(self.logits) else [])]

    def classes(self, head: str) -> int:
        """How many answers a head can give."""
        return self.logits[head].shape[1] if head in self.logits else int(np.prod([self.logits[h].shape[1] for h in PAIR]))

    def table(self) -> dict[str, float]:
        """`{head}_top1`, `{head}_top5` (where there are more than five classes) and `n`."""
        out: dict[str, float] = {}
        for head in self.heads:
            out |= {f"{head}_{top}": share for top, share in self.tops(head).items()}
        out["n"] = len(self)
        return out

    @property
    def top1(self) -> float:
        """Mean over heads."""
        return float(np.mean([self.accuracy(head) for head in self.logits]))

    def mean_class_accuracy(self, head: str) -> float:
        """Top-1 of every class that has clips, averaged over those classes."""
        right = self.ranks(head) < 1
        labels = self.labels[head]
        clips = np.bincount(labels)
        hits = np.bincount(labels, weights=right, minlength=len(clips))
        return float((hits[clips > 0] / clips[clips > 0]).mean()) if len(labels) else 0.0

    def confusion(self, head: str) -> Ints:
        """`[K, K]` clips by label (rows) and prediction (columns)."""
        count = self.logits[head].shape[1]
        matrix = np.zeros((count, count), np.int64)
        if len(self):
            np.add.at(matrix, (self.labels[head], np.argmax(self.logits[head], 1)), 1)
        return matrix

    def part(self, masks: Mapping[str, Mask]) -> dict[str, dict[str, float]]:
        """Top-1 and top-5 of some of the clips, `{head: {"top1", "top5", "n"}}` (top5 where there are more than five classes);
        masks: which ones, per head, by the catalogue's numbers. Heads for which there are none are left out."""
        out: dict[str, dict[str, float]] = {}
        for head in self.heads:
            if head in masks:
                chosen = masks[head] if self.index is None else masks[head][self.index]
                if chosen.any():
                    out[head] = {**self.tops(head, chosen), "n": int(chosen.sum())}
        return out

    def tops(self, head: str, chosen: Mask | slice = slice(None)) -> dict[str, float]:
        """`top1`, and `top5` where there are more than five classes, of the chosen clips `[n]`."""
        ranks = self.ranks(head)[chosen]
        return {f"top{k}": _share(ranks < k) for k in (1, 5) if k == 1 or self.classes(head) > k}


def _share(right: NDArray[np.bool_]) -> float:
    return float(right.mean()) if len(right) else 0.0


def write_confusion(path: Path, matrix: Ints, names: list[str]) -> None:
    """A confusion matrix as `.csv` (counts), or else as a picture: rows are labels, each scaled to its own number of clips."""
    if path.suffix.lower() == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["label", *names])
        writer.writerows([name, *row.tolist()] for name, row in zip(names, matrix, strict=True))
        write_text(path, text.getvalue())
        return
    picture = _picture(matrix, names)
    with atomic_path(path) as aside:
        picture.save(aside, format="PNG")


def _picture(matrix: Ints, names: list[str]) -> Image:
    from PIL import Image, ImageDraw

    from dtkd_edge.fonts import font_for, say_boxes

    count = len(names)
    cell = max(min(900 // count, 40), 2)
    named = cell >= 9  # smaller rows have no room for a name
    fonts = [font_for(name, min(cell, 14)) for name in names]
    left = int(max(font.getlength(name) for font, name in zip(fonts, names, strict=True))) + 12 if named else 4
    top, side = 30 + (left if named else 0), cell * count
    words, title = "rows: label, columns: prediction; a row's cells add up to 1", font_for("", 13)
    picture = Image.new("RGB", (max(left + side + 12, int(title.getlength(words)) + 16), top + side + 8), "white")
    draw = ImageDraw.Draw(picture)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    low, high = np.array([247, 250, 253.0]), np.array([8, 64, 129.0])
    colors = (low + shares[:, :, None] * (high - low)).round().astype(np.uint8)
    picture.paste(Image.fromarray(colors).resize((side, side), Image.Resampling.NEAREST), (left, top))
    draw.text((8, 6), words, fill="black", font=title)
    if named:
        say_boxes(names)
        for i, (name, font) in enumerate(zip(names, fonts, strict=True)):
            middle = top + cell * i + cell / 2
            draw.text((left - 6, middle), name, fill="black", font=font, anchor="rm")
            turned = Image.new("L", (left, cell), 0)
            ImageDraw.Draw(turned).text((6, cell / 2), name, fill=255, font=font, anchor="lm")
            upright = turned.rotate(90, expand=True)
            picture.paste("black", (left + cell * i, top - left), upright)
            for j in range(count):
                if matrix[i, j] and cell >= 20:
                    where = (left + cell * j + cell / 2, middle)
                    fill = "white" if shares[i, j] > 0.5 else "black"
                    draw.text(where, str(matrix[i, j]), fill=fill, font=font_for("", 10), anchor="mm")
    draw.rectangle((left - 1, top - 1, left + side, top + side), outline="gray")
    return picture
