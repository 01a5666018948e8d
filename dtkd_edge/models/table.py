"""The list of models, as `dtkd-edge models` and docs/models.md show it. No torch: the figures are stored beside this file.

Counting them means building every model, which takes a quarter of a minute: `python -m dtkd_edge.models.count` does.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).with_name("figures.json")
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
    """One model of the list. taps: name → channels. published: whose files load besides its own, and `weights:`."""

    name: str
    roles: tuple[str, ...]
    frames: int
    size: int
    stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    taps: dict[str, int]
    parameters: int
    macs: int
    published: tuple[str, ...]

    def cells(self) -> list[str]:
        taps = ", ".join(f"{tap} {channels}" for tap, channels in self.taps.items())
        clip = f"{self.frames} × {self.size}²" + (f", stride {self.stride}" if self.stride > 1 else "")
        return [
            self.name, ", ".join(self.roles), clip, amount(self.parameters), amount(self.macs), taps,
            f"{numbers(self.mean)}, {numbers(self.std)}", "; ".join(self.published),
        ]  # fmt: skip


@dataclass(frozen=True)
class ModelTable:
    """families: a name or `prefix_*` of the registry → what it is. rows: every model, and of a family some of it."""

    families: dict[str, str]
    rows: list[Row]

    @classmethod
    def read(cls) -> ModelTable:
        found: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8"))
        rows: list[dict[str, Any]] = [
            {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()} for row in found["rows"]
        ]
        return cls(found["families"], [Row(**row) for row in rows])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_markdown(self) -> str:
        """docs/models.md."""
        alike: dict[str, list[str]] = {}
        for name, text in self.families.items():
            alike.setdefault(text, []).append(f"`{name}`")
        about = "\n".join(f"- {', '.join(names)}: {text}" for text, names in alike.items())
        lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        lines += ["| " + " | ".join([f"`{cells[0]}`", *cells[1:]]) + " |" for cells in (row.cells() for row in self.rows)]
        return f"""# Models

Parameters and multiply-accumulates (MACs) are of one clip and {CLASSES} classes. A family (`NAME_*`) is shown by some of it.
Every tap is `[B, channels, T, H, W]`; mean and std are of RGB in [0, 1]. `dtkd-edge models NAME` shows one model in full.
This page is the output of `dtkd-edge models --markdown`; `python -m dtkd_edge.models.count` counts every model anew.

{chr(10).join(lines)}

{about}
{NOTES}"""


def listed(row: Row, width: int) -> str:
    """One model of the list: a line, and below it what is longer, folded to that many characters."""
    name, role, clip, parameters, macs, taps, normalisation, files = row.cells()
    lines = [f"{name:27}{role:23}{clip:24}{parameters:>10}{macs:>11}"]
    for key, text in (("taps", taps), ("mean, std", normalisation), ("checkpoints", files)):
        if text:
            lines += textwrap.wrap(f"{key}: {text}", max(width, 60), initial_indent="    ", subsequent_indent="        ")
    return "\n".join(lines)


def amount(count: float) -> str:
    """0.60 G, 3.79 M"""
    return f"{count / 1e9:.2f} G" if count >= 1e8 else f"{count / 1e6:.2f} M"


def numbers(values: tuple[float, ...]) -> str:
    """Three numbers, or one where they are equal."""
    return f"{values[0]:g}" if len(set(values)) == 1 else "(" + " ".join(f"{v:g}" for v in values) + ")"
