"""Small CNNs for small clips (8 frames of 40–64 pixels): a student and a teacher that train in minutes on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dtkd_edge.models.base import Heads, ModelInfo, VideoModel
from dtkd_edge.models.registry import register
from dtkd_edge.models.shift import Shift, fold_time, unfold_time
from dtkd_edge.models.streaming import StreamForm
from dtkd_edge.models.tsm_stream import ShiftStream


def _conv(cin: int, cout: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    if act:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class _InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al., 2018) with the shift in front of the expansion."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int, frames: int, fold: int, causal: bool) -> None:
        super().__init__()
        wide = cin * expand
        self.skip = stride == 1 and cin == cout
        self.expand = Shift(_conv(cin, wide, 1), frames, fold, causal)
        self.depth = _conv(wide, wide, 3, stride, groups=wide)
        self.project = _conv(wide, cout, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depth(self.expand(x)))
        return x + out if self.skip else out


class _Residual(nn.Module):
    """ResNet's basic block (He et al., 2016) with the shift inside the branch."""

    def __init__(self, cin: int, cout: int, stride: int, frames: int, fold: int, causal: bool) -> None:
        super().__init__()
        self.conv1 = Shift(_conv(cin, cout, 3, stride), frames, fold, causal)
        self.conv2 = _conv(cout, cout, 3, act=False)
        self.shortcut = nn.Identity() if stride == 1 and cin == cout else _conv(cin, cout, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.conv2(self.conv1(x)))


class FrameCNN(VideoModel):
    """A 2-D network over frames that mixes time by shifts; logits from the mean over space and time."""

    def __init__(self, info: ModelInfo, stem: nn.Module, stages: list[nn.Module], heads: dict[str, int], drop: float) -> None:
        super().__init__()
        self.info, self.heads = info, heads
        self.stem = stem
        self.stages = nn.ModuleDict(dict(zip(info.taps, stages, strict=True)))
        self.head = Heads(info.taps[info.last_tap], heads, drop)

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        x = self.stem(fold_time(clips))
        taps = {}
        for name, stage in self.stages.items():
            x = stage(x)
            taps[name] = unfold_time(x, self.info.frames)
        return taps

    def forward_head(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(self.head(features[self.info.last_tap].mean((2, 3, 4))))

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.head.parameters())

    def forward_frame(self, frame: Tensor) -> dict[str, Tensor]:
        """`[N, 3, H, W]` → what `forward` says of a clip of that one frame."""
        x = self.stem(frame)
        for stage in self.stages.values():
            x = stage(x)
        return dict(self.head(x.mean((2, 3))))

    def stream_form(self) -> StreamForm:
        return ShiftStream(self)


@register("tsm_tiny", ("student", "cnn-teacher"), "TSM over inverted residuals, for small clips; width 28 for a teacher")
def tsm_tiny(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None,
    width: int = 16, fold: int = 8, causal: bool = False, dropout: float = 0.1,
) -> VideoModel:  # fmt: skip
    w, t = width, frames or 8
    info = ModelInfo(
        name,
        ("student", "cnn-teacher"),
        frames=t,
        size=size or 48,
        taps={"stage1": w * 3 // 2, "stage2": w * 5 // 2, "stage3": w * 4},
    )

    def stage(cin: int, cout: int, blocks: int) -> nn.Module:
        steps = [(cin, cout, 2), *[(cout, cout, 1)] * (blocks - 1)]
        return nn.Sequential(*[_InvertedResidual(a, b, s, 4, t, fold, causal) for a, b, s in steps])

    c1, c2, c3 = info.taps.values()
    stages: list[nn.Module] = [
        stage(w, c1, 2),
        stage(c1, c2, 2),
        nn.Sequential(_InvertedResidual(c2, c3, 1, 4, t, fold, causal)),
    ]
    return FrameCNN(info, _conv(3, w, 3, 2), stages, heads, dropout)


@register("tsm_resnet_tiny", ("cnn-teacher", "student"), "TSM over basic residual blocks, for small generated clips")
def tsm_resnet_tiny(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None,
    width: int = 24, fold: int = 8, causal: bool = False, dropout: float = 0.1,
) -> VideoModel:  # fmt: skip
    w, t = width, frames or 8
    info = ModelInfo(
        name,
        ("cnn-teacher", "student"),
        frames=t,
        size=size or 48,
        taps={"stage1": w, "stage2": w * 2, "stage3": w * 3},
    )
    c1, c2, c3 = info.taps.values()
    stages: list[nn.Module] = [
        nn.Sequential(_Residual(w, c1, 1, t, fold, causal)),
        nn.Sequential(_Residual(c1, c2, 2, t, fold, causal)),
        nn.Sequential(_Residual(c2, c3, 2, t, fold, causal), _Residual(c3, c3, 1, t, fold, causal)),
    ]
    return FrameCNN(info, _conv(3, w, 3, 2), stages, heads, dropout)
