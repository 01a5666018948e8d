"""SlowFast (Feichtenhofer et al.: SlowFast networks for video recognition, ICCV 2019) on ResNet-50, under pytorchvideo's names.

One clip goes in, that of the fast pathway; the slow one takes every α-th of its frames. With one head the state dict is, key for
key and shape for shape, that of pytorchvideo's `slowfast_r50` of as many classes.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtkd_edge.errors import RecipeError
from dtkd_edge.models.base import JointHeads, Layout, ModelInfo, Tensors, VideoModel
from dtkd_edge.models.layouts import Pattern, substitute
from dtkd_edge.models.registry import register

DEPTHS = (3, 4, 6, 3)
BETA = 8  # the slow pathway has that many times the fast one's channels
LATERAL = 2  # channels of a lateral connection, as a multiple of the fast pathway's
# name → frames of the fast pathway, stride, α, length in time of the lateral connections' kernels
SETTINGS = {"slowfast_r50_4x16": (32, 2, 8, 5), "slowfast_r50_8x8": (32, 2, 4, 7)}


def _conv(cin: int, cout: int, time: int = 1, space: int = 1, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(cin, cout, (time, space, space), (1, stride, stride), (time // 2, space // 2, space // 2), bias=False)


class _Bottleneck(nn.Module):
    def __init__(self, cin: int, inner: int, cout: int, time: int, stride: int) -> None:
        super().__init__()
        self.conv_a, self.norm_a = _conv(cin, inner, time), nn.BatchNorm3d(inner)
        self.conv_b, self.norm_b = _conv(inner, inner, space=3, stride=stride), nn.BatchNorm3d(inner)
        self.conv_c, self.norm_c = _conv(inner, cout), nn.BatchNorm3d(cout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.conv_a(x)))
        x = F.relu(self.norm_b(self.conv_b(x)))
        out: Tensor = self.norm_c(self.conv_c(x))
        return out


class _Block(nn.Module):
    def __init__(self, cin: int, inner: int, cout: int, time: int, stride: int) -> None:
        super().__init__()
        project = cin != cout or stride != 1
        self.branch1_conv = _conv(cin, cout, stride=stride) if project else nn.Identity()
        self.branch1_norm = nn.BatchNorm3d(cout) if project else nn.Identity()
        self.branch2 = _Bottleneck(cin, inner, cout, time, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch1_norm(self.branch1_conv(x)) + self.branch2(x))


class _Stem(nn.Module):
    def __init__(self, width: int, time: int) -> None:
        super().__init__()
        self.conv, self.norm = _conv(3, width, time, space=7, stride=2), nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(F.relu(self.norm(self.conv(x))), (1, 3, 3), (1, 2, 2), (0, 1, 1))


class _Stage(nn.Module):
    def __init__(self, cin: int, inner: int, time: int, depth: int, stride: int) -> None:
        super().__init__()
        cout = 4 * inner
        blocks = [_Block(cin if i == 0 else cout, inner, cout, time, stride if i == 0 else 1) for i in range(depth)]
        self.res_blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.res_blocks(x)
        return out


class _Fuse(nn.Module):
    """A lateral connection: the fast pathway's features at the slow one's frames."""

    def __init__(self, width: int, alpha: int, kernel: int) -> None:
        super().__init__()
        wide = LATERAL * width
        self.conv_fast_to_slow = nn.Conv3d(width, wide, (kernel, 1, 1), (alpha, 1, 1), (kernel // 2, 0, 0), bias=False)
        self.norm = nn.BatchNorm3d(wide)

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        return torch.cat([slow, F.relu(self.norm(self.conv_fast_to_slow(fast)))], 1)


class _Step(nn.Module):
    """The same stage of both pathways, and the lateral connection behind it."""

    def __init__(self, slow: nn.Module, fast: nn.Module, fuse: nn.Module | None) -> None:
        super().__init__()
        self.multipathway_blocks = nn.ModuleList([slow, fast])
        self.multipathway_fusion = fuse

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(the slow pathway's features with the lateral ones, the fast one's, the slow one's alone)"""
        alone, fast = (block(x) for block, x in zip(self.multipathway_blocks, (slow, fast), strict=True))
        slow = alone if self.multipathway_fusion is None else self.multipathway_fusion(alone, fast)
        return slow, fast, alone


class _Head(nn.Module):
    def __init__(self, channels: int, heads: dict[str, int], dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.proj = JointHeads(channels, heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits: dict[str, Tensor] = self.proj(self.dropout(x.mean((2, 3, 4))))
        return logits


class SlowFast(VideoModel):
    """`blocks`: both stems, four stages, a place without parameters, the head.

    Taps: the slow pathway's stages, and last both pathways' final features, the fast one's averaged to the slow one's frames.
    """

    def __init__(self, info: ModelInfo, heads: dict[str, int], alpha: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.info, self.heads = info, heads
        # The frames that PySlowFast and pytorchvideo take: evenly from the first to the last.
        self.slow_frames = torch.linspace(0, info.frames - 1, info.frames // alpha, device="cpu").long().tolist()
        width, fast = 64, 64 // BETA
        steps = [_Step(_Stem(width, 1), _Stem(fast, 5), _Fuse(fast, alpha, kernel))]
        slow_in, fast_in = width + LATERAL * fast, fast
        for i, depth in enumerate(DEPTHS):
            inner, stride, last = width * 2**i, 1 if i == 0 else 2, i == len(DEPTHS) - 1
            slow_stage = _Stage(slow_in, inner, 1 if i < 2 else 3, depth, stride)
            fast_stage = _Stage(fast_in, inner // BETA, 3, depth, stride)
            fast_in = 4 * inner // BETA
            slow_in = 4 * inner + LATERAL * fast_in
            steps.append(_Step(slow_stage, fast_stage, None if last else _Fuse(fast_in, alpha, kernel)))
        self.blocks = nn.ModuleList([*steps, nn.Identity(), _Head(info.taps["res5"], heads, dropout)])
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _Bottleneck):
                nn.init.zeros_(module.norm_c.weight)  # every block starts as its shortcut

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        # Slices: an index list exports to GatherND, which TensorRT's parser lacks.
        slow, fast = torch.cat([clips[:, :, t : t + 1] for t in self.slow_frames], 2), clips
        taps = {}
        for i, step in enumerate(self.blocks[:-2]):
            slow, fast, alone = step(slow, fast)
            if i > 0:
                taps[f"res{i + 1}"] = alone
        # Equal blocks of frames, so that the mean over all of it is that of the fast pathway.
        fast = fast.unflatten(2, (len(self.slow_frames), -1)).mean(3)
        taps["res5"] = torch.cat([slow, fast], 1)
        return taps

    def forward_head(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        logits: dict[str, Tensor] = self.blocks[-1](features["res5"])
        return logits

    def head_parameters(self) -> list[nn.Parameter]:
        return list(cast(_Head, self.blocks[-1]).parameters())

    def layouts(self) -> dict[str, Layout]:
        return {"pytorchvideo": dict, "PySlowFast": from_pyslowfast}


_PYSLOWFAST: list[Pattern] = [
    (r"^s1\.pathway(\d)_stem\.conv\.", r"blocks.0.multipathway_blocks.\1.conv."),
    (r"^s1\.pathway(\d)_stem\.bn\.", r"blocks.0.multipathway_blocks.\1.norm."),
    (r"^s(\d)_fuse\.conv_f2s\.", lambda m: f"blocks.{int(m[1]) - 1}.multipathway_fusion.conv_fast_to_slow."),
    (r"^s(\d)_fuse\.bn\.", lambda m: f"blocks.{int(m[1]) - 1}.multipathway_fusion.norm."),
    (r"^s([2-5])\.pathway(\d)_res(\d+)\.", lambda m: f"blocks.{int(m[1]) - 1}.multipathway_blocks.{m[2]}.res_blocks.{m[3]}."),
    (r"^head\.projection\.", "blocks.6.proj."),
    (r"\.branch1\.", ".branch1_conv."),
    (r"\.branch1_bn\.", ".branch1_norm."),
    (r"\.branch2\.([abc])_bn\.", r".branch2.norm_\1."),
    (r"\.branch2\.([abc])\.", r".branch2.conv_\1."),
]


def from_pyslowfast(tensors: Tensors) -> Tensors:
    """PySlowFast's SlowFast under our names."""
    return substitute(tensors, _PYSLOWFAST)


def _slowfast(
    name: str, heads: dict[str, int], frames: int | None = None, size: int | None = None,
    alpha: int | None = None, kernel: int | None = None, dropout: float = 0.5,
) -> VideoModel:  # fmt: skip
    t, stride, own_alpha, own_kernel = SETTINGS[name]
    t, alpha, kernel = frames or t, alpha or own_alpha, kernel or own_kernel
    if t % alpha or kernel % 2 == 0:
        raise RecipeError(
            f"{name}: {t} frames with alpha {alpha} and kernel {kernel} do not go together",
            "frames must be a multiple of alpha, and kernel odd",
        )
    taps = {**{f"res{i + 2}": 256 * 2**i for i in range(3)}, "res5": 2048 + 2048 // BETA}
    info = ModelInfo(name, ("student", "cnn-teacher"), frames=t, size=size or 224, stride=stride, taps=taps)
    return SlowFast(info, heads, alpha, kernel, dropout)


for _name in SETTINGS:
    register(_name, ("student", "cnn-teacher"), "SlowFast on ResNet-50: few frames in full width, all frames in an eighth")(
        _slowfast
    )
