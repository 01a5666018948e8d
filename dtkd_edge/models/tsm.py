"""TSM over any timm CNN whose blocks it knows: `tsm_<timm name>`, such as `tsm_mobilenetv2_100` or `tsm_resnet50`.

The shift stands where the reference code of TSM (Lin, Gan, Han, ICCV 2019) puts it: in front of the first convolution of a
residual branch, in inverted residual blocks only where they have a skip connection.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from dtkd_edge.errors import RecipeError
from dtkd_edge.models.base import Heads, Layout, ModelInfo, VideoModel, triple
from dtkd_edge.models.layouts import Pattern, rename, substitute
from dtkd_edge.models.registry import register
from dtkd_edge.models.shift import Shift, fold_time, unfold_time
from dtkd_edge.models.sources import Fetch, hub_weights, timm_weights, torchvision_weights
from dtkd_edge.models.streaming import StreamForm
from dtkd_edge.models.tsm_layouts import HEAD, MIT, MMACTION2
from dtkd_edge.models.tsm_stream import ShiftStream

# Block class → the convolution that the shift is put in front of.
SHIFTED = {"BasicBlock": "conv1", "Bottleneck": "conv1", "InvertedResidual": "conv_pw"}


def insert_shifts(backbone: nn.Module, frames: int, fold: int, causal: bool) -> int:
    """Put a Shift in front of the first convolution of each residual branch; returns how many."""
    count = 0
    for block in list(backbone.modules()):
        place = SHIFTED.get(type(block).__name__)
        # Blocks of other families bear the same names.
        if place is None or not hasattr(block, place) or not getattr(block, "has_skip", True):
            continue
        setattr(block, place, Shift(getattr(block, place), frames, fold, causal))
        count += 1
    return count


class TSM(VideoModel):
    """A timm CNN over frames with shifts; logits are the mean over frames of the classifier (segment consensus)."""

    def __init__(self, info: ModelInfo, backbone: Any, heads: dict[str, int], dropout: float) -> None:
        super().__init__()
        self.info, self.heads = info, heads
        self.backbone = backbone
        self.head = Heads(backbone.head_hidden_size, heads, dropout)

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        names = list(self.info.taps)
        final, stages = self.backbone.forward_intermediates(fold_time(clips), indices=list(range(len(names) - 1)))
        return {name: unfold_time(x, self.info.frames) for name, x in zip(names, [*stages, final], strict=True)}

    def forward_head(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        frames = fold_time(features["final"])
        pooled = self.backbone.forward_head(frames, pre_logits=True)
        # The classifier is linear: its mean over frames is the classifier of the mean.
        return dict(self.head(pooled.reshape(-1, self.info.frames, pooled.shape[-1]).mean(1)))

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.head.parameters())

    def forward_frame(self, frame: Tensor) -> dict[str, Tensor]:
        """`[N, 3, H, W]` → what `forward` says of a clip of that one frame."""
        pooled = self.backbone.forward_head(self.backbone.forward_features(frame), pre_logits=True)
        return dict(self.head(pooled))

    def stream_form(self) -> StreamForm:
        return ShiftStream(self)

    def layouts(self) -> dict[str, Layout]:
        names = {key.removeprefix("backbone.").replace(".net.", "."): key for key in self.state_dict()}
        found: dict[str, Layout] = {"timm": lambda tensors: rename(tensors, names)}
        family = re.match("resnet|mobilenetv2", self.info.name.removeprefix("tsm_"))
        if family is None:
            return found
        # Among several heads a published classifier has no place.
        only = next(iter(self.heads)) if len(self.heads) == 1 else None
        head = {} if only is None else {f"{HEAD}{part}": f"head.linear.{only}.{part}" for part in ("weight", "bias")}

        def through(patterns: list[Pattern]) -> Layout:
            # A shift stands in front of a convolution as `.net.`: both sides without it, since its place is ours to know.
            return lambda tensors: rename(substitute(tensors, [(r"\.net\.", "."), *patterns]), names | head)

        return {**found, "mit-han-lab": through(MIT[family[0]]), "mmaction2": through(MMACTION2[family[0]])}

    def sources(self) -> dict[str, Fetch]:
        base = self.info.name.removeprefix("tsm_")
        found = {"timm": timm_weights(base), "hf-hub": hub_weights()}
        if re.fullmatch(r"resnet\d+", base):  # timm's names are torchvision's
            found["torchvision"] = torchvision_weights(base)
        return found


@register("tsm_*", ("student", "cnn-teacher"), "TSM over a timm CNN (mobilenetv2, mobilenetv3, efficientnet, resnet, …)")
def tsm(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None,
    fold: int = 8, causal: bool = False, dropout: float = 0.2,
    mean: float | tuple[float, float, float] | None = None, std: float | tuple[float, float, float] | None = None,
    **timm_options: Any,
) -> VideoModel:  # fmt: skip
    import timm

    base = name.removeprefix("tsm_")
    if not timm.is_model(base):
        raise RecipeError(f"{name}: timm has no model {base!r}", "see: dtkd-edge models")
    try:
        backbone: Any = timm.create_model(base, pretrained=False, num_classes=0, **timm_options)
    except TypeError as error:
        raise RecipeError(f"{name}: {error}", "check student.options / teachers.*.options in the recipe") from error
    t = frames or 8
    if insert_shifts(backbone, t, fold, causal) == 0:
        known = ", ".join(SHIFTED)
        raise RecipeError(f"{name}: no residual block here that TSM can shift", f"choose a CNN made of {known} blocks")
    config = backbone.pretrained_cfg
    taps = {f"stage{i + 1}": stage["num_chs"] for i, stage in enumerate(backbone.feature_info)}
    taps["final"] = backbone.num_features
    info = ModelInfo(
        name,
        ("student", "cnn-teacher"),
        frames=t,
        size=size or 224,
        mean=triple(mean, config["mean"]),
        std=triple(std, config["std"]),
        taps=taps,
    )
    return TSM(info, backbone, heads, dropout)
