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


# What the list does not say by itself; tests/models hold every figure of it.
NOTES = """
## MACs beside published figures

- One multiply-accumulate counts as one, of convolutions and matrix products only. Papers call that FLOPs; it is half of what
  torch's counter calls so.
- mmaction2's tool adds two operations per value of every batch norm. By that rule TSM-ResNet-50 has its printed 32.88 G, and
  32.70 G here. Batch norms cost nothing where it counts: they are folded into convolutions when a student is exported.
- TSM-MobileNetV2 is printed with 3.27 G: that is of 256 × 256 pixels, batch norms included (3.13 G + 0.14 G), though its row
  says 224. Of 224 × 224 the same rule gives 2.50 G, of which 2.40 G are multiply-accumulates: eight times MobileNetV2's
  300 M, less its classifier of 1000 classes.
- SlowFast's published figures are of 256 × 256 pixels: 36.1 G (4×16) and 65.7 G (8×8) in the paper and at `size: 256` here,
  36.3 G and 66.1 G with batch norms. The list above is of 224 × 224.

## What `tsm_*` takes

timm CNNs whose residual blocks have one first convolution to put the shift in front of: BasicBlock and Bottleneck (resnet,
resnext, wide_resnet, seresnet, ecaresnet, regnet, hrnet) and InvertedResidual (mobilenetv2, mobilenetv3, efficientnet,
efficientnetv2, tinynet, mnasnet, mixnet, fbnetc, spnasnet, hardcorenas). Others are refused, since without a shift they would
be a bag of frames: convnext, densenet, mobilenetv4, ghostnet, mobileone, repvgg, resnetv2, res2net, dla, gernet, fastvit,
vgg.

## MViT

- `mvit_v1_b` takes the files of torchvision, of PySlowFast (MVIT_B_16x4_CONV) and of pytorchvideo's hub (`mvit_base_16x4`;
  `mvit_base_32x3` with `frames: 32`, `stride: 3`). Its tables of positions are scaled linearly to another frames × size.
  Published top-1 on Kinetics-400: 78.5 % by torchvision and 78.4 % by PySlowFast (5 clips of one crop each), 78.9 % by
  pytorchvideo; 32 × 3: 80.4 % by PySlowFast, 80.3 % by pytorchvideo.
- pytorchvideo's network is torchvision's but for one number: ε of the norms of pooled queries, keys and values is 1e-5 there,
  and 1e-6 in torchvision, in today's PySlowFast and here. With equal ε they agree to 1e-5; with their own, logits of random
  weights differ by less than 1 % of their spread.
"""


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
{NOTES}"""


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
