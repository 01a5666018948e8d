"""`dtkd-edge models [NAME]`: what a recipe can name, read from the registry."""

from __future__ import annotations

import torch
from rich.table import Table

from dtkd_edge.console import print_table
from dtkd_edge.models.base import VideoModel
from dtkd_edge.models.registry import create_model, entries

# What a family is shown by in the list.
EXAMPLES = {
    "tsm_*": ["tsm_mobilenetv2_035", "tsm_mobilenetv2_100", "tsm_mobilenetv3_large_100", "tsm_efficientnet_b0", "tsm_resnet50"]
}


def show(name: str | None, classes: int = 400) -> None:
    """A table of all models, or one model in full: clip, parameters, MACs, normalisation and feature taps."""
    if name is not None:
        _show_one(name, classes)
        return
    table = Table(title=f"models (parameters and multiply-accumulates of one clip, {classes} classes)")
    for column in ("name", "role", "frames × size", "parameters", "MACs", "about"):
        table.add_column(column, justify="right" if column in ("parameters", "MACs") else "left")
    for entry in entries():
        for example in EXAMPLES.get(entry.name, [entry.name]):
            model = create_model(example, classes)
            info = model.info
            about = entry.about if example in (entry.name, EXAMPLES.get(entry.name, [""])[0]) else ""
            table.add_row(
                example,
                ", ".join(info.roles),
                f"{info.frames} × {info.size}²",
                millions(parameters(model)),
                macs_text(model),
                about,
            )
    print_table(table)


def _show_one(name: str, classes: int) -> None:
    model = create_model(name, classes)
    info = model.info
    table = Table(title=name, show_header=False)
    rows = {
        "role": ", ".join(info.roles),
        "clip": f"{info.frames} frames, stride {info.stride}, {info.size} × {info.size} pixels",
        "normalisation": f"mean {info.mean}, std {info.std} of RGB in [0, 1]",
        "parameters": f"{parameters(model):,} with {classes} classes",
        "MACs": f"{macs_text(model)} per clip",
        "checkpoints": ", ".join(["its own names", *model.layouts()]),
    }
    clip = torch.zeros(2, 3, info.frames, info.size, info.size)
    with torch.inference_mode():
        features = model.eval().forward_features(clip)
    for tap, value in features.items():
        channels, *grid = value.shape[1:]
        rows[f"tap {tap}"] = f"{channels} channels, {' × '.join(str(n) for n in grid)} (T × H × W)"
    for key, text in rows.items():
        table.add_row(key, text)
    print_table(table)


def parameters(model: VideoModel) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: VideoModel) -> int:
    """Multiply-accumulates of one clip, counted by torch's FLOP counter (two FLOPs each)."""
    from torch.utils.flop_counter import FlopCounterMode

    info = model.info
    # With gradients, since torch's fused transformer layer for inference is not counted.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, info.frames, info.size, info.size))
    return int(counter.get_total_flops()) // 2


def millions(count: float) -> str:
    return f"{count / 1e6:.2f} M"


def macs_text(model: VideoModel) -> str:
    count = macs(model)
    return f"{count / 1e9:.2f} G" if count >= 1e8 else f"{count / 1e6:.1f} M"
