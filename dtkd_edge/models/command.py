"""`dtkd-edge models [NAME] [--markdown]`: what a recipe can name, read from the registry."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.table import Table

from dtkd_edge.console import output_width, print_table, say
from dtkd_edge.errors import MissingDependency
from dtkd_edge.models.base import ModelInfo, VideoModel
from dtkd_edge.models.measure import count_macs, count_parameters
from dtkd_edge.models.registry import create_model, entries

# What a family is shown by in the list.
EXAMPLES = {
    "tsm_*": [
        *("tsm_mobilenetv2_035", "tsm_mobilenetv2_100", "tsm_mobilenetv3_large_100"),
        *("tsm_efficientnet_b0", "tsm_resnet18", "tsm_resnet50"),
    ],
    "vit_*": ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"],
    "vit_hybrid_*": ["vit_hybrid_mobilenetv2_100"],
}
CLASSES = 400  # of Kinetics-400, for which most are published
COLUMNS = ("name", "role", "clip", "parameters", "MACs", "feature taps (channels)", "mean, std", "published checkpoints")


@dataclass(frozen=True)
class Row:
    """One model of the list. `published`: whose files load besides its own, and what `weights:` can name."""

    name: str
    info: ModelInfo
    parameters: int
    macs: int
    published: tuple[str, ...]

    def cells(self) -> list[str]:
        info = self.info
        taps = ", ".join(f"{tap} {channels}" for tap, channels in info.taps.items())
        clip = f"{info.frames} × {info.size}²" + (f", stride {info.stride}" if info.stride > 1 else "")
        return [
            self.name, ", ".join(info.roles), clip, amount(self.parameters), amount(self.macs), taps,
            f"{numbers(info.mean)}, {numbers(info.std)}", "; ".join(self.published),
        ]  # fmt: skip


def rows(classes: int = CLASSES) -> Iterator[Row]:
    """Every model, and of a family its examples, built without memory for its weights."""
    for entry in entries():
        for name in EXAMPLES.get(entry.name, [entry.name]):
            try:
                with torch.device("meta"):
                    model = create_model(name, classes)
            except MissingDependency as missing:
                say(f"not listed: {missing}")
                continue
            yield Row(name, model.info, count_parameters(model), count_macs(model), published(model))


def published(model: VideoModel) -> tuple[str, ...]:
    files, sources = ", ".join(model.layouts()), ", ".join(model.sources())
    return tuple(text for text in (files and f"files of {files}", sources and f"weights: {sources}") if text)


def show(name: str | None, classes: int = CLASSES, markdown: bool = False) -> None:
    """All models, each as soon as it is counted, or one model in full: clip, parameters, MACs, normalisation and feature taps."""
    if name is not None:
        _show_one(name, classes)
        return
    if markdown:
        print(to_markdown(list(rows(classes))), end="")
        return
    print(f"parameters and multiply-accumulates (MACs) are of one clip and {classes} classes; a family is shown by some of it\n")
    print(f"{'name':27}{'role':23}{'clip':24}{'parameters':>10}{'MACs':>11}")
    for row in rows(classes):
        print(listed(row, output_width()), flush=True)


def listed(row: Row, width: int) -> str:
    """One model of the list: a line, and below it what is longer, folded to that many characters."""
    name, role, clip, parameters, macs, taps, normalisation, files = row.cells()
    lines = [f"{name:27}{role:23}{clip:24}{parameters:>10}{macs:>11}"]
    for key, text in (("taps", taps), ("mean, std", normalisation), ("checkpoints", files)):
        if text:
            lines += textwrap.wrap(f"{key}: {text}", max(width, 60), initial_indent="    ", subsequent_indent="        ")
    return "\n".join(lines)


def to_markdown(table: list[Row]) -> str:
    """docs/models.md: `dtkd-edge models --markdown > docs/models.md`."""
    families: dict[str, list[str]] = {}
    for entry in entries():
        families.setdefault(entry.about, []).append(f"`{entry.name}`")
    about = "\n".join(f"- {', '.join(names)}: {text}" for text, names in families.items())
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join([f"`{cells[0]}`", *cells[1:]]) + " |" for cells in (row.cells() for row in table)]
    return f"""# Models

Parameters and multiply-accumulates (MACs) are of one clip and {CLASSES} classes. A family (`NAME_*`) is shown by some of it.
Every tap is `[B, channels, T, H, W]`; mean and std are of RGB in [0, 1]. `dtkd-edge models NAME` shows one model in full.
This page is the output of `dtkd-edge models --markdown`.

{chr(10).join(lines)}

{about}
"""


def _show_one(name: str, classes: int) -> None:
    with torch.device("meta"):
        model = create_model(name, classes)
    info = model.info
    table = Table(title=name, show_header=False)
    found = {
        "role": ", ".join(info.roles),
        "clip": f"{info.frames} frames, stride {info.stride}, {info.size} × {info.size} pixels",
        "normalisation": f"mean {info.mean}, std {info.std} of RGB in [0, 1]",
        "parameters": f"{count_parameters(model):,} with {classes} classes",
        "MACs": f"{amount(count_macs(model))} per clip",
        "checkpoints": "; ".join(["its own", *published(model)]),
    }
    clip = torch.zeros(2, 3, info.frames, info.size, info.size, device="meta")
    with torch.no_grad():
        features = model.eval().forward_features(clip)
    for tap, value in features.items():
        channels, *grid = value.shape[1:]
        found[f"tap {tap}"] = f"{channels} channels, {' × '.join(str(n) for n in grid)} (T × H × W)"
    for key, text in found.items():
        table.add_row(key, text)
    print_table(table)


def amount(count: float) -> str:
    """0.60 G, 3.79 M"""
    return f"{count / 1e9:.2f} G" if count >= 1e8 else f"{count / 1e6:.2f} M"


def numbers(values: tuple[float, ...]) -> str:
    """Three numbers, or one where they are equal."""
    return f"{values[0]:g}" if len(set(values)) == 1 else "(" + " ".join(f"{v:g}" for v in values) + ")"
