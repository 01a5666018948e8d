"""X3D as a network over frames: the same function from the same weights, with 2-D convolutions only. For ONNX Runtime.

Its 3-D depthwise convolution is a plain one, and takes two thirds of X3D's time; its 2-D one works on blocks of channels. A
convolution of k × 3 × 3 is a sum over its k planes, each a 2-D convolution of the frame that this plane reads:

    y[t] = Σᵢ wᵢ ∗ x[t + i - k//2],   x = 0 before the first frame and behind the last

so that the sum is the only thing left that knows of time (a causal one reads x[t + i - k + 1]). OpenVINO's 3-D kernels are faster
than this.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fusion

from dtkd_edge.models.base import VideoModel
from dtkd_edge.models.past import PastConv3d, PastMean
from dtkd_edge.models.shift import fold_time
from dtkd_edge.models.x3d import X3D

BLOCK = 16  # channels: inner ones are filled up with zeros to whole blocks, which ONNX Runtime's depthwise kernels need


def over_frames(model: VideoModel) -> VideoModel:
    """The same network over frames, if it is one that gains from that; otherwise `model` itself. In eval mode."""
    return _FrameX3D(model).eval() if isinstance(model, X3D) else model


def _folded(conv: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a 3-D convolution with the batch norm behind it."""
    conv = cast(nn.Conv3d, conv)
    if isinstance(norm, nn.BatchNorm3d):
        conv = fusion.fuse_conv_bn_eval(conv.eval(), norm.eval())
    weight = conv.weight.detach()
    return weight, torch.zeros(len(weight)) if conv.bias is None else conv.bias.detach()


def _filled(x: Tensor, *sizes: int) -> Tensor:
    """Zeros behind the ends of the first dimensions, up to `sizes`."""
    pads: list[int] = []
    for have, want in zip(reversed(x.shape), reversed([*sizes, *x.shape[len(sizes) :]]), strict=True):
        pads += [0, want - have]
    return F.pad(x, pads)


def _blocks(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK


class _Spatial(nn.Module):
    """A convolution that looks at one frame. cin, cout: channels with those that were filled up."""

    def __init__(self, conv: nn.Module, norm: nn.Module | None = None, cin: int = 0, cout: int = 0) -> None:
        super().__init__()
        weight, bias = _folded(conv, norm)
        weight = weight.squeeze(2)
        self.weight = nn.Parameter(_filled(weight, cout or weight.shape[0], cin or weight.shape[1]), requires_grad=False)
        self.bias = nn.Parameter(_filled(bias, len(self.weight)), requires_grad=False)
        self.stride, self.padding = cast(nn.Conv3d, conv).stride[1:], cast(nn.Conv3d, conv).padding[1:]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class _Depthwise(nn.Module):
    """A depthwise convolution over time as well, of frames `[N·T, C, H, W]`."""

    def __init__(self, conv: nn.Module, norm: nn.Module, frames: int) -> None:
        super().__init__()
        weight, bias = _folded(conv, norm)
        self.now = weight.shape[2] - 1 if isinstance(conv, PastConv3d) else weight.shape[2] // 2  # the plane of the frame itself
        self.channels, self.frames = _blocks(len(weight)), frames
        planes = _filled(weight, self.channels).unbind(2)
        self.planes = nn.ParameterList([nn.Parameter(plane.clone(), requires_grad=False) for plane in planes])
        self.bias = nn.Parameter(_filled(bias, self.channels), requires_grad=False)
        self.stride, self.padding = cast(nn.Conv3d, conv).stride[1:], cast(nn.Conv3d, conv).padding[1:]

    def forward(self, x: Tensor) -> Tensor:
        total = self._plane(x, self.now, self.bias)
        for i in range(len(self.planes)):
            if i != self.now:
                total = total + self._moved(self._plane(x, i, None), i - self.now)
        return total

    def _plane(self, x: Tensor, i: int, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, self.planes[i], bias, self.stride, self.padding, groups=self.channels)

    def _moved(self, x: Tensor, step: int) -> Tensor:
        """Where frame t was stands frame t + step, and zeros where there is none."""
        clips = x.unflatten(0, (-1, self.frames))
        gap = torch.zeros_like(clips[:, : abs(step)])
        return torch.cat([clips[:, step:], gap] if step > 0 else [gap, clips[:, :step]], 1).flatten(0, 1)


class _SqueezeExcite(nn.Module):
    def __init__(self, gate: nn.Module, frames: int, channels: int) -> None:
        super().__init__()
        block = cast(nn.Sequential, gate.block)
        self.frames, self.over_time = frames, cast("PastMean | None", gate.over_time)
        self.squeeze, self.excite = _Spatial(block[0], cin=channels), _Spatial(block[2], cout=channels)

    def forward(self, x: Tensor) -> Tensor:
        clips = x.unflatten(0, (-1, self.frames))
        if self.over_time is not None:  # each frame has gates of its own
            pooled = self.over_time(clips.mean((3, 4)).transpose(1, 2)[..., None, None]).transpose(1, 2).flatten(0, 1)
            return x * torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))
        pooled = clips.mean((1, 3, 4))[:, :, None, None]
        gates = torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))
        return (clips * gates.unsqueeze(1)).flatten(0, 1)


class _Block(nn.Module):
    def __init__(self, block: Any, frames: int, cin: int) -> None:  # of x3d.py
        super().__init__()
        branch = block.branch2
        norm, gate = branch.norm_b
        self.open = _Spatial(branch.conv_a, branch.norm_a, cin, _blocks(branch.conv_a.out_channels))
        self.depthwise = _Depthwise(branch.conv_b, norm, frames)
        channels = self.depthwise.channels
        self.gate = nn.Identity() if isinstance(gate, nn.Identity) else _SqueezeExcite(gate, frames, channels)
        self.close = _Spatial(branch.conv_c, branch.norm_c, cin=channels)
        straight = isinstance(block.branch1_conv, nn.Identity)
        self.shortcut = nn.Identity() if straight else _Spatial(block.branch1_conv, block.branch1_norm, cin)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.gate(self.depthwise(F.relu(self.open(x))))
        return F.relu(self.shortcut(x) + self.close(F.silu(inner)))


class _FrameX3D(VideoModel):
    def __init__(self, model: X3D) -> None:
        super().__init__()
        self.info, self.heads = model.info, model.heads
        parts: list[Any] = list(model.blocks)
        stem, *stages, head = parts
        self.stem = _Spatial(stem.conv["conv_t"], cout=_blocks(stem.conv["conv_t"].out_channels))
        self.stem_time = _Depthwise(stem.conv["conv_xy"], stem.norm, self.info.frames)
        blocks = [block for stage in stages for block in stage.res_blocks]
        first = self.stem_time.channels  # the stem's own are filled up too
        self.blocks = nn.ModuleList([_Block(b, self.info.frames, 0 if i else first) for i, b in enumerate(blocks)])
        self.last = _Spatial(head.pool["pre_conv"], head.pool["pre_norm"])
        self.head = head

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem_time(self.stem(fold_time(clips))))
        for block in self.blocks:
            x = block(x)
        x = F.relu(self.last(x))
        # What the head pools: the mean over time and space is that of the frames' means.
        frames = x.mean((2, 3)).unflatten(0, (-1, self.info.frames))
        logits: dict[str, Tensor] = self.head(frames.transpose(1, 2)[..., None, None])
        return logits
