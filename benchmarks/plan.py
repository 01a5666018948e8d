"""Which clips belong to an artefact: its own run's validation data, or what the user names. No torch."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dtkd_edge import recipe_reader
from dtkd_edge.benchmarks.accuracy import Reference
from dtkd_edge.benchmarks.answers import UNKNOWN
from dtkd_edge.errors import DtkdEdgeError, UsageError
from dtkd_edge.recipe import DataConfig

if TYPE_CHECKING:
    from dtkd_edge.artifact import Artifact
    from dtkd_edge.data.catalogue import Catalogue


@dataclass
class Data:
    """Labelled validation clips and the words that name them in a record. own: the run's, as they were at its training."""

    clips: Catalogue
    name: str
    own: bool = False


def run_of(artifact: Path) -> Path | None:
    """The run folder that an artefact lies in (RUN/export/NAME), or None."""
    run = artifact.resolve().parent.parent
    return run if (run / "recipe.yaml").is_file() else None


def data_config(artifact: Path, data: Path | None, overrides: list[str]) -> DataConfig | None:
    """--data (a folder per class, or a csv list), or the run's own recipe; both changed by --set data.…; None: there is none."""
    for override in overrides:
        if not override.startswith("data."):
            raise UsageError(f"--set {override}: bench takes data.… only", "for example: --set data.root=videos")
    if data is not None:
        return recipe_reader.data_at(data, overrides)
    run = run_of(artifact)
    if run is not None:
        return recipe_reader.load_run(run, overrides).data
    return recipe_reader.data_section({}, overrides, "--set") if overrides else None


def find_data(artifact: Path, data: Path | None, overrides: list[str]) -> tuple[Data | None, str]:
    """(clips, "") or (None, why there are none). What the user named must be there; a run's data may have gone."""
    named = data is not None or bool(overrides)
    config = data_config(artifact, data, overrides)
    if config is None:
        return None, "the artefact lies in no run folder; name labelled videos with --data"
    from dtkd_edge.data.catalogue import open_split
    from dtkd_edge.data.lists import note_trained_on

    try:
        clips = open_split(config, "val")
    except DtkdEdgeError as error:
        if named:
            raise
        return None, f"the run's data is not usable here: {error.message}"
    run = run_of(artifact)
    if data is not None and run is not None:
        note_trained_on(clips, recipe_reader.load_run(run).data)
    return Data(clips, str(data) if data is not None else f"{config.kind} {config.root or ''}".strip() + ", val", not named), ""


def find_reference(artifact: Artifact, data: Data) -> Reference:
    """What the run's torch student said of its validation clips when it was trained (RUN/predictions.npz), in the artefact's
    class numbers; nothing for other clips, or where the run has no such file or its labels do not fit."""
    run = run_of(artifact.folder)
    if run is None or not data.own or not (run / "predictions.npz").is_file():
        return {}
    reference = {}
    try:
        with np.load(run / "predictions.npz", allow_pickle=False) as kept:
            for head, names in artifact.manifest.labels.items():
                if f"{head}/index" not in kept or head not in data.clips.classes:
                    continue
                index, classes = kept[f"{head}/index"], kept[f"{head}/classes"].tolist()
                there = _numbers(classes, data.clips.classes[head])
                if not np.array_equal(there[kept[f"{head}/labels"]], data.clips.labels(head)[index]):
                    continue
                answers = np.full(len(data.clips), UNKNOWN, np.int64)
                answers[index] = _numbers(classes, names)[kept[f"{head}/logits/student"].argmax(1)]
                reference[head] = answers
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile):  # damaged, or of another version
        return {}
    return reference


def _numbers(names: list[str], among: list[str]) -> NDArray[np.int64]:
    """The number of each name among others, or UNKNOWN."""
    numbers = {name: i for i, name in enumerate(among)}
    return np.array([numbers.get(name, UNKNOWN) for name in names], np.int64)
