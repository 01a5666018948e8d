"""`python -m dtkd_edge.models.count`: build every model, count it, and store the figures that `dtkd-edge models` shows.

It also writes docs/models.md where this package lies in its repository. To be run whenever a model is added or changed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dtkd_edge.console import say
from dtkd_edge.exits import reported
from dtkd_edge.files import write_json, write_text
from dtkd_edge.models.base import VideoModel
from dtkd_edge.models.measure import count_macs, count_parameters
from dtkd_edge.models.registry import create_model, entries
from dtkd_edge.models.table import CLASSES, FIGURES, ModelTable, Row

# What a family is shown by in the list.
EXAMPLES = {
    "tsm_*": [
        *("tsm_mobilenetv2_035", "tsm_mobilenetv2_100", "tsm_mobilenetv3_large_100"),
        *("tsm_efficientnet_b0", "tsm_resnet18", "tsm_resnet50"),
    ],
    "vit_*": ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"],
    "vit_hybrid_*": ["vit_hybrid_mobilenetv2_100"],
}


def count_all() -> ModelTable:
    """Every model, and of a family its examples. MissingDependency where a library of one is not installed."""
    return ModelTable({entry.name: entry.about for entry in entries()}, list(_rows()))


def _rows() -> Iterator[Row]:
    for entry in entries():
        for name in EXAMPLES.get(entry.name, [entry.name]):
            yield count(name)


def count(name: str) -> Row:
    """One model, built without memory for its weights."""
    with torch.device("meta"):
        model = create_model(name, CLASSES)
    info = model.info
    return Row(
        name, info.roles, info.frames, info.size, info.stride, info.mean, info.std, info.taps,
        count_parameters(model), count_macs(model), published(model),
    )  # fmt: skip


def published(model: VideoModel) -> tuple[str, ...]:
    files, sources = ", ".join(model.layouts()), ", ".join(model.sources())
    return tuple(text for text in (files and f"files of {files}", sources and f"weights: {sources}") if text)


def main() -> None:
    table = count_all()
    write_json(FIGURES, table.to_json())
    written = [FIGURES]
    docs = FIGURES.parents[2] / "docs"
    if docs.is_dir():
        write_text(docs / "models.md", table.to_markdown())
        written.append(docs / "models.md")
    say(f"{len(table.rows)} models counted: {', '.join(map(str, written))}")


if __name__ == "__main__":
    reported(main)
