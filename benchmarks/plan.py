"""Which clips belong to an artefact: its own run's validation data, or what the user names. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtkd_edge import recipe
from dtkd_edge.errors import DtkdEdgeError, UsageError

if TYPE_CHECKING:
    from dtkd_edge.data.catalogue import Catalogue


@dataclass
class Data:
    """Labelled validation clips and the words that name them in a record."""

    clips: Catalogue
    name: str


def run_of(artifact: Path) -> Path | None:
    """The run folder that an artefact lies in (RUN/export/NAME), or None."""
    run = artifact.resolve().parent.parent
    return run if (run / "recipe.yaml").is_file() else None


def data_config(artifact: Path, data: Path | None, overrides: list[str]) -> recipe.DataConfig | None:
    """--data (a folder per class, or a csv list), or the run's own recipe; both changed by --set data.…; None: there is none."""
    for override in overrides:
        if not override.startswith("data."):
            raise UsageError(f"--set {override}: bench takes data.… only", "for example: --set data.root=videos")
    if data is not None:
        return recipe.data_at(data, overrides)
    run = run_of(artifact)
    if run is not None:
        return recipe.load(run / "recipe.yaml", overrides).data
    return recipe.data_section({}, overrides, "--set") if overrides else None


def find_data(artifact: Path, data: Path | None, overrides: list[str]) -> tuple[Data | None, str]:
    """(clips, "") or (None, why there are none). What the user named must be there; a run's data may have gone."""
    named = data is not None or bool(overrides)
    config = data_config(artifact, data, overrides)
    if config is None:
        return None, "the artefact lies in no run folder; name labelled videos with --data"
    from dtkd_edge.data.catalogue import open_split

    try:
        clips = open_split(config, "val")
    except DtkdEdgeError as error:
        if named:
            raise
        return None, f"the run's data is not usable here: {error.message}"
    return Data(clips, str(data) if data is not None else f"{config.kind} {config.root or ''}".strip() + ", val"), ""
