"""`dtkd-edge models [NAME] [--markdown]`: what a recipe can name. The list needs no torch; one model in full is built."""

from __future__ import annotations

from rich.table import Table

from dtkd_edge.console import output_width, print_table
from dtkd_edge.models.table import CLASSES, ModelTable, amount, listed


def show(name: str | None, markdown: bool = False) -> None:
    """All models, or one model in full: clip, parameters, MACs, normalisation and feature taps."""
    if name is not None:
        _show_one(name)
        return
    table = ModelTable.read()
    if markdown:
        print(table.to_markdown(), end="")
        return
    print(f"parameters and multiply-accumulates (MACs) are of one clip and {CLASSES} classes; a family is shown by some of it\n")
    print(f"{'name':27}{'role':23}{'clip':24}{'parameters':>10}{'MACs':>11}")
    for row in table.rows:
        print(listed(row, output_width()))


def _show_one(name: str) -> None:
    import torch

    from dtkd_edge.models.count import published
    from dtkd_edge.models.measure import count_macs, count_parameters
    from dtkd_edge.models.registry import create_model

    with torch.device("meta"):
        model = create_model(name, CLASSES)
    info = model.info
    table = Table(title=name, show_header=False)
    found = {
        "role": ", ".join(info.roles),
        "clip": f"{info.frames} frames, stride {info.stride}, {info.size} × {info.size} pixels",
        "normalisation": f"mean {info.mean}, std {info.std} of RGB in [0, 1]",
        "parameters": f"{count_parameters(model):,} with {CLASSES} classes",
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
