"""How the students of a comparison do on other clips than its own, such as fresh ones of a generated set.

    python -m dtkd_edge.train.heldout COMPARISON --set data.root=fresh --set data.seed=77 --set data.val_clips=4000 …
        [--methods dtkd,ce] [--reference dtkd] [--csv FILE]

A comparison's own scores are of validation clips, on which weights were chosen, and of a generated set they are few. This scores
every finished student once more: on the validation clips of the runs' recipe with the given changes, which for a generated set
are as many fresh clips as asked for. That no run has seen them is for the caller to see to: of a comparison with --resplit, one
seed's validation clips are another's training clips. Clips are decoded once for all students of one preprocessing, and kept.

Printed are mean ± standard error over seeds and the paired difference of the reference to every other method with two standard
errors: over seeds, and over seeds and clips, which all seeds share. The second one says what is known of other clips.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.console import progress
from dtkd_edge.data.catalogue import Catalogue, open_split
from dtkd_edge.errors import InputError, UsageError
from dtkd_edge.exits import reported
from dtkd_edge.files import write_text
from dtkd_edge.models.base import fit_clip
from dtkd_edge.models.saved import load_model
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.train.compare import spread
from dtkd_edge.train.memory import keep_freed_memory
from dtkd_edge.video import read_input

Hits = NDArray[np.bool_]  # [clips]


def find_students(folder: Path) -> dict[str, dict[int, Path]]:
    """Method → seed → run, of all finished ones; InputError where there is none."""
    found: dict[str, dict[int, Path]] = {}
    for card in sorted(folder.glob("seed-*/*/student.json")):
        run = card.parent
        found.setdefault(run.name, {})[int(run.parent.name.removeprefix("seed-"))] = run
    if not found:
        raise InputError(f"{folder}: no finished student of a comparison", "give the folder that dtkd-edge compare wrote")
    return found


class Clips:
    """The validation clips of a recipe, as networks take them, decoded once for each preprocessing."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.read = lru_cache(maxsize=1)(self._read)

    def _read(self, preprocess: Preprocess) -> NDArray[np.uint8]:
        def one(number: int) -> NDArray[np.uint8]:
            clip = self.catalogue[number]
            return read_input(clip.open(), preprocess, start=clip.start, end=clip.end)[0]

        with ThreadPoolExecutor(2) as pool:
            return np.stack(list(pool.map(one, range(len(self.catalogue)))))


@torch.inference_mode()
def score(run: Path, clips: Clips, batch: int = 32) -> Hits:
    """Which clips a run's student names rightly in every head, `[clips]`."""
    model, card = load_model(run / "student")
    if card.labels != clips.catalogue.classes:
        raise InputError(f"{run}: its classes are not those of {clips.catalogue.root}", "give clips of the same classes")
    frames = clips.read(card.preprocess)
    right = np.ones(len(frames), bool)
    for first in range(0, len(frames), batch):
        part = slice(first, first + batch)
        for head, logits in model(fit_clip(torch.from_numpy(frames[part]), model.info)).items():
            right[part] &= logits.argmax(1).numpy() == clips.catalogue.labels(head)[part]
    return right


def standard_errors(difference: NDArray[np.float64]) -> tuple[float, float]:
    """Of the mean of `[seeds, clips]`: over seeds, s / √n (NaN for one), and with the variance over the clips added."""
    own = spread(difference.mean(1).tolist())["se"]
    over_clips = spread(difference.mean(0).tolist())["se"] or 0.0  # of one clip nothing is known
    return float("nan") if own is None else own, math.hypot(own or 0.0, over_clips)


def table(hits: Mapping[str, Mapping[int, Hits]], reference: str) -> list[str]:
    """Markdown rows, best first; differences over the seeds that both have."""
    lines = ["| method | top-1 | difference | over seeds | over seeds and clips |", "|---|---|---|---|---|"]
    for name in sorted(hits, key=lambda name: -np.mean([h.mean() for h in hits[name].values()])):
        own = spread([100 * float(h.mean()) for h in hits[name].values()])
        cells = f"{own['mean']:.1f}" + (f" ± {own['se']:.1f}" if own["se"] is not None else "")
        common = sorted(hits[name].keys() & hits[reference].keys())
        if name == reference or not common:
            lines.append(f"| {name} | {cells} | | | |")
            continue
        difference = np.stack([100 * (hits[reference][seed].astype(float) - hits[name][seed]) for seed in common])
        over_seeds, over_both = standard_errors(difference)
        seeds = "" if len(common) == len(hits[name]) else f" ({len(common)} seeds)"
        lines.append(f"| {name} | {cells} | {difference.mean():+.1f}{seeds} | ± {over_seeds:.1f} | ± {over_both:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", required=True, metavar="A.B=V", help="which clips")
    parser.add_argument("--reference", default="dtkd")
    parser.add_argument("--methods", help="only these, separated by commas")
    parser.add_argument("--csv", type=Path, help="method,seed,top1 of every student")
    options = parser.parse_args()

    keep_freed_memory()
    students = find_students(options.comparison)
    wanted = options.methods.split(",") if options.methods else list(students)
    if missing := [name for name in dict.fromkeys([*wanted, options.reference]) if name not in students]:
        raise UsageError(f"{missing[0]}: {options.comparison} has no finished student of it", f"it has: {', '.join(students)}")
    students = {name: students[name] for name in dict.fromkeys([*wanted, options.reference])}
    first = next(iter(next(iter(students.values())).values()))
    clips = Clips(open_split(recipes.load_run(first, options.overrides).data, "val"))
    hits: dict[str, dict[int, Hits]] = {}
    with progress("students", sum(map(len, students.values()))) as bar:
        for name, runs in students.items():
            hits[name] = {}
            for seed in sorted(runs):
                hits[name][seed] = score(runs[seed], clips)
                bar.advance()
    print(f"{len(clips.catalogue)} clips of {clips.catalogue.root}, paired differences of {options.reference} to each method")
    print("\n".join(table(hits, options.reference)))
    if options.csv:
        scores = [f"{name},{seed},{h.mean():.6f}" for name, seeds in hits.items() for seed, h in seeds.items()]
        write_text(options.csv, "\n".join(["method,seed,top1", *scores, ""]))


if __name__ == "__main__":
    reported(main)
