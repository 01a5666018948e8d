"""The result file of EPIC-KITCHENS-100's action recognition challenge. No torch.

Source of the format: epic-kitchens/C1-Action-Recognition (utils/challenge.py, create_submission.py), version 0.2; its zip holds
one file, test.json. Scores are log-probabilities; an action's is the sum of its verb's and its noun's, ranked so.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.data.catalogue import Catalogue
from dtkd_edge.data.pairs import CANDIDATES, PAIR
from dtkd_edge.errors import DataError, UsageError
from dtkd_edge.files import atomic_path
from dtkd_edge.train.scores import Scores

ACTIONS = 100  # most that a segment may have
LOWEST = -1000.0  # of a class whose probability is 0, or that the model does not have
INSIDE = "test.json"
LEVELS = ("sls_pt", "sls_tl", "sls_td")
Rows = NDArray[Any]


def parse_levels(text: str) -> dict[str, int]:
    """'2,3,3' → the supervision levels of pre-training, training labels and training data."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or any(part not in "012345" or len(part) != 1 for part in parts):
        raise UsageError(f"--sls {text}: expected three levels of 0 to 5", "PT,TL,TD such as 2,3,3; see epic-kitchens/sls")
    return {name: int(part) for name, part in zip(LEVELS, parts, strict=True)}


def check_file(path: Path) -> None:
    """Before hours of evaluation. UsageError for an ending that is neither .json nor .zip."""
    if path.suffix.lower() not in (".json", ".zip"):
        raise UsageError(f"--submission {path}: expected .json or .zip", "the leaderboard takes .zip")


def check_data(catalogue: Catalogue) -> None:
    """DataError for clips that are no EPIC-KITCHENS segments."""
    if set(catalogue.classes) != set(PAIR) or catalogue.ids is None:
        raise DataError(
            f"--submission: {catalogue.name} has no verbs, nouns and narration ids",
            "it is for kind epic100, or shards packed from it",
        )


def write_submission(
    path: Path, scores: Scores, catalogue: Catalogue, numbers: Mapping[str, Sequence[int]], levels: Mapping[str, int]
) -> list[str]:
    """Write every scored segment, and return the narration ids of those that are not.

    scores: log-probabilities `[n, K]` of the model's own classes, with `index`; numbers: per head the model's class number of
    each of the data set's classes, -1 where it has none.
    """
    assert catalogue.ids is not None and scores.index is not None
    every = [name.decode() for name in catalogue.ids]
    columns = {head: _official(np.asarray(scores.logits[head]), np.array(numbers[head])) for head in PAIR}
    with atomic_path(path) as aside, _stream(aside, path.suffix.lower() == ".zip") as stream:
        head = {"version": "0.2", "challenge": "action_recognition", **levels}
        stream.write(json.dumps(head)[:-1] + ', "results": {')
        for row, index in enumerate(scores.index):  # one by one: all of them would be millions of Python objects
            verb, noun = (columns[name][row] for name in PAIR)
            entry = {"verb": _dictionary(verb), "noun": _dictionary(noun), "action": actions(verb, noun)}
            stream.write((",\n" if row else "\n") + f"{json.dumps(every[index])}: {json.dumps(entry, separators=(',', ':'))}")
        stream.write("\n}}\n")
    written = {every[index] for index in scores.index}
    return [name for name in every if name not in written]


def actions(verb: Rows, noun: Rows) -> dict[str, float]:
    """The best pairs of one segment, 'verb,noun' → score, best first, out of its best 100 verbs `[V]` and nouns `[N]`."""
    verbs, nouns = (np.argsort(-scores, kind="stable")[:CANDIDATES] for scores in (verb, noun))
    pairs = (verb[verbs][:, None] + noun[nouns]).reshape(-1)
    best = np.argsort(-pairs, kind="stable")[:ACTIONS]
    return {f"{verbs[at // len(nouns)]},{nouns[at % len(nouns)]}": round(float(pairs[at]), 6) for at in best}


def _official(logs: Rows, numbers: Rows) -> Rows:
    """Columns in the order of the data set's classes, finite."""
    out = np.full((len(logs), len(numbers)), LOWEST)
    out[:, numbers >= 0] = np.maximum(logs[:, numbers[numbers >= 0]], LOWEST)
    return out


def _dictionary(scores: Rows) -> dict[str, float]:
    return {str(number): round(float(score), 6) for number, score in enumerate(scores)}


@contextmanager
def _stream(path: Path, zipped: bool) -> Iterator[TextIO]:
    if not zipped:
        with path.open("w", encoding="utf-8") as stream:
            yield stream
        return
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(INSIDE, "w", force_zip64=True) as inside,
        io.TextIOWrapper(inside, encoding="utf-8") as stream,
    ):
        yield stream
