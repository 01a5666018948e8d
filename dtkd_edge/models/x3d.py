"""X3D (Feichtenhofer: X3D, Expanding architectures for efficient video recognition, CVPR 2020), under pytorchvideo's names.

With one head the state dict is, key for key and shape for shape, that of pytorchvideo's `x3d_*` of as many classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtkd_edge.models.base import JointHeads, Layout, ModelInfo, Tensors, VideoModel
from dtkd_edge.models.depthwise import Conv3d
from dtkd_edge.models.layouts import Pattern, substitute
from dtkd_edge.models.past import PastConv3d, PastMean
from dtkd_edge.models.registry import register
from dtkd_edge.models.streaming import StreamForm

STEM, WIDTHS, INNER = 24, (24, 48, 96, 192), (54, 108, 216, 432)
SHALLOW, DEEP = (3, 5, 11, 7), (5, 10, 25, 15)  # blocks of a stage
EMBEDDING = 2048
# name → frames, stride, size, depths: table 4 of the paper
SIZES = {
    "x3d_xs": (4, 12, 160, SHALLOW),
    "x3d_s": (13, 6, 160, SHALLOW),
    "x3d_m": (16, 5, 224, SHALLOW),
    "x3d_l": (16, 5, 312, DEEP),
}


def _conv(
    cin: int, cout: int, kernel: tuple[int, int, int] = (1, 1, 1), stride: int = 1, groups: int = 1, past: bool = False
) -> nn.Conv3d:
    """Padded to keep the size; the stride is one of space."""
    kind = PastConv3d if past else Conv3d
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return kind(cin, cout, kernel, (1, stride, stride), padding, groups=groups, bias=False)


class _SqueezeExcite(nn.Module):
    """past: 0, or the most frames of a clip: each frame's gates then come from the frames up to it."""

    def __init__(self, channels: int, past: int) -> None:
        super().__init__()
        self.over_time = PastMean(past) if past else None
        inner = max(8, (channels // 16 + 4) // 8 * 8)
        inner += 8 if inner < 0.9 * channels / 16 else 0
        self.block = nn.Sequential(nn.Conv3d(channels, inner, 1), nn.ReLU(), nn.Conv3d(inner, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.over_time(x.mean((3, 4), keepdim=True)) if self.over_time else x.mean((2, 3, 4), keepdim=True)
        gates: Tensor = self.block(pooled)
        return x * gates


class _Bottleneck(nn.Module):
    def __init__(self, cin: int, inner: int, cout: int, stride: int, squeeze: bool, past: int) -> None:
        super().__init__()
        self.conv_a, self.norm_a = _conv(cin, inner), nn.BatchNorm3d(inner)
        self.conv_b = _conv(inner, inner, (3, 3, 3), stride, groups=inner, past=past > 0)
        self.norm_b = nn.Sequential(nn.BatchNorm3d(inner), _SqueezeExcite(inner, past) if squeeze else nn.Identity())
        self.conv_c, self.norm_c = _conv(inner, cout), nn.BatchNorm3d(cout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.conv_a(x)))
        x = F.silu(self.norm_b(self.conv_b(x)))
        out: Tensor = self.norm_c(self.conv_c(x))
        return out


class _Block(nn.Module):
    def __init__(self, cin: int, inner: int, cout: int, stride: int, squeeze: bool, past: int) -> None:
        super().__init__()
        self.branch1_conv = _conv(cin, cout, stride=stride) if cin != cout or stride != 1 else nn.Identity()
        # The first stage's projection has no norm, as in pytorchvideo; PySlowFast's has one, see `fold_first_shortcut`.
        self.branch1_norm = nn.BatchNorm3d(cout) if cin != cout else nn.Identity()
        self.branch2 = _Bottleneck(cin, inner, cout, stride, squeeze, past)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch1_norm(self.branch1_conv(x)) + self.branch2(x))


class _Stem(nn.Module):
    def __init__(self, past: int) -> None:
        super().__init__()
        # In pytorchvideo's stem `conv_t` holds the spatial convolution and `conv_xy` the temporal one.
        over_time = _conv(STEM, STEM, (5, 1, 1), groups=STEM, past=past > 0)
        self.conv = nn.ModuleDict({"conv_t": _conv(3, STEM, (1, 3, 3), 2), "conv_xy": over_time})
        self.norm = nn.BatchNorm3d(STEM)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv["conv_xy"](self.conv["conv_t"](x))))


class _Stage(nn.Module):
    def __init__(self, cin: int, inner: int, cout: int, depth: int, past: int) -> None:
        super().__init__()
        # Every other block has squeeze-excitation.
        blocks = [_Block(cin if i == 0 else cout, inner, cout, 2 if i == 0 else 1, i % 2 == 0, past) for i in range(depth)]
        self.res_blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.res_blocks(x)
        return out


class _Head(nn.Module):
    """The last convolution before the pooling, the embedding after it, and the classifier."""

    def __init__(self, heads: dict[str, int], dropout: float) -> None:
        super().__init__()
        cin, inner = WIDTHS[-1], INNER[-1]
        layers = {"pre_conv": _conv(cin, inner), "pre_norm": nn.BatchNorm3d(inner), "post_conv": _conv(inner, EMBEDDING)}
        self.pool = nn.ModuleDict(layers)
        self.dropout = nn.Dropout(dropout)
        self.proj = JointHeads(EMBEDDING, heads)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.pool["pre_norm"](self.pool["pre_conv"](x)))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pooled = F.relu(self.pool["post_conv"](x.mean((2, 3, 4), keepdim=True)))
        logits: dict[str, Tensor] = self.proj(self.dropout(pooled.flatten(1)))
        return logits


class X3D(VideoModel):
    """`blocks`: the stem, four stages and the head. The taps are the stages' outputs, then what the head pools.

    causal: no frame's features look ahead. The convolutions see the past only, and the average over time of squeeze-excitation
    is at each frame one over the frames up to it. The same weights, another function: to be trained as it is used.
    """

    def __init__(
        self, info: ModelInfo, heads: dict[str, int], depths: tuple[int, ...], dropout: float, causal: bool = False
    ) -> None:
        super().__init__()
        self.info, self.heads, self.causal = info, heads, causal
        past = info.frames if causal else 0
        widths = zip((STEM, *WIDTHS[:-1]), INNER, WIDTHS, depths, strict=True)
        self.blocks = nn.ModuleList([_Stem(past), *(_Stage(*stage, past) for stage in widths), _Head(heads, dropout)])
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _Bottleneck):
                nn.init.zeros_(module.norm_c.weight)  # every block starts as its shortcut

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        stem, *stages, head = self.blocks
        x, taps = stem(clips), {}
        for name, stage in zip(self.info.taps, stages, strict=False):
            x = taps[name] = stage(x)
        taps["conv5"] = cast(_Head, head).features(x)
        return taps

    def forward_head(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        logits: dict[str, Tensor] = self.blocks[-1](features["conv5"])
        return logits

    def head_parameters(self) -> list[nn.Parameter]:
        return list(cast(_Head, self.blocks[-1]).proj.parameters())

    def stream_form(self) -> StreamForm:
        from dtkd_edge.models.x3d_stream import ContinualX3D

        return ContinualX3D(self)

    def layouts(self) -> dict[str, Layout]:
        return {"pytorchvideo": dict, "PySlowFast": from_pyslowfast}


# PySlowFast's names, in the order in which they are replaced by pytorchvideo's.
_PYSLOWFAST: list[Pattern] = [
    (r"^s1\.pathway0_stem\.conv_xy\.", "blocks.0.conv.conv_t."),
    (r"^s1\.pathway0_stem\.conv\.", "blocks.0.conv.conv_xy."),
    (r"^s1\.pathway0_stem\.bn\.", "blocks.0.norm."),
    (r"^head\.conv_5\.", "blocks.5.pool.pre_conv."),
    (r"^head\.conv_5_bn\.", "blocks.5.pool.pre_norm."),
    (r"^head\.lin_5\.", "blocks.5.pool.post_conv."),
    (r"^head\.projection\.", "blocks.5.proj."),
    (r"^s([2-5])\.pathway0_res(\d+)\.", lambda m: f"blocks.{int(m[1]) - 1}.res_blocks.{m[2]}."),
    (r"\.branch1\.", ".branch1_conv."),
    (r"\.branch1_bn\.", ".branch1_norm."),
    (r"\.branch2\.b_bn\.", ".branch2.norm_b.0."),
    (r"\.branch2\.se\.fc1\.", ".branch2.norm_b.1.block.0."),
    (r"\.branch2\.se\.fc2\.", ".branch2.norm_b.1.block.2."),
    (r"\.branch2\.([ac])_bn\.", r".branch2.norm_\1."),
    (r"\.branch2\.([abc])\.", r".branch2.conv_\1."),
]


def from_pyslowfast(tensors: Tensors) -> Tensors:
    """PySlowFast's X3D under our names."""
    return fold_first_shortcut(substitute(tensors, _PYSLOWFAST))


def fold_first_shortcut(tensors: Tensors, eps: float = 1e-5) -> Tensors:
    """PySlowFast norms the first stage's projection too: γ(Wx - μ)/√(σ²+ε) + β. That norm's scale goes into W, and what it adds
    into the bias of the norm that ends the other branch, with which it is summed: the same function in eval mode."""
    block = "blocks.1.res_blocks.0"
    weight, bias = f"{block}.branch1_conv.weight", f"{block}.branch2.norm_c.bias"
    norm = {part: f"{block}.branch1_norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
    if not {weight, bias, *norm.values()} <= tensors.keys():
        return tensors
    gamma, beta, mean, var = (tensors[key].double() for key in norm.values())
    scale = gamma / torch.sqrt(var + eps)
    folded = {key: value for key, value in tensors.items() if not key.startswith(f"{block}.branch1_norm.")}
    folded[weight] = (tensors[weight].double() * scale[:, None, None, None, None]).to(tensors[weight].dtype)
    folded[bias] = (tensors[bias].double() + beta - mean * scale).to(tensors[bias].dtype)
    return folded


def _x3d(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None,
    dropout: float = 0.5, causal: bool = False,
) -> VideoModel:  # fmt: skip
    t, stride, s, depths = SIZES[name]
    taps = {**{f"res{i + 2}": width for i, width in enumerate(WIDTHS)}, "conv5": INNER[-1]}
    info = ModelInfo(name, ("student", "cnn-teacher"), frames=frames or t, size=size or s, stride=stride, taps=taps)
    return X3D(info, heads, depths, dropout, causal)


for _name in SIZES:
    register(_name, ("student", "cnn-teacher"), "X3D: depthwise 3-D convolutions, expanded from an image network")(_x3d)
