"""The temporal shift of TSM (Lin, Gan, Han: TSM, ICCV 2019): time mixing at no multiply-accumulate."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def temporal_shift(x: Tensor, frames: int, fold: int = 8, causal: bool = False) -> Tensor:
    """Shift C/fold channels one frame in time, zero padded: `[B·T, C, H, W]` → the same shape.

    Bidirectional: the first C/fold channels come from the next frame, the second C/fold from the previous one. Causal: the first
    C/fold come from the previous frame and nothing comes from the future. Written as slices and concatenations, because a slice
    assignment exports to ScatterND, which is slow and was once wrong. Channels-last input stays channels-last: joining the parts
    in five dimensions would not, and then every convolution behind a shift copies its input twice.
    """
    rows, channels, height, width = x.shape
    n = channels // fold
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    clips = x.reshape(rows // frames, frames, channels, height, width)

    def moved(part: Tensor, step: int) -> Tensor:
        gap = torch.zeros_like(part[:, :1])
        joined = torch.cat([part[:, step:], gap] if step > 0 else [gap, part[:, :step]], 1)
        return joined.reshape(rows, n, height, width).contiguous(memory_format=layout)

    if causal:
        return torch.cat([moved(clips[:, :, :n], -1), x[:, n:]], 1)
    return torch.cat([moved(clips[:, :, :n], 1), moved(clips[:, :, n : 2 * n], -1), x[:, 2 * n :]], 1)


class Shift(nn.Module):
    """A shift in front of a convolution; `net` is the name that the published TSM checkpoints use."""

    def __init__(self, net: nn.Module, frames: int, fold: int = 8, causal: bool = False) -> None:
        super().__init__()
        if fold < 1:
            raise ValueError(f"fold: {fold}: expected at least 1")
        self.net = net
        self.frames, self.fold, self.causal = frames, fold, causal

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(temporal_shift(x, self.frames, self.fold, self.causal))
        return out


def fold_time(clips: Tensor) -> Tensor:
    """`[B, C, T, H, W]` → `[B·T, C, H, W]`, for a 2-D network over frames."""
    batch, channels, frames, height, width = clips.shape
    return clips.transpose(1, 2).reshape(batch * frames, channels, height, width)


def unfold_time(x: Tensor, frames: int) -> Tensor:
    """`[B·T, C, H, W]` → `[B, C, T, H, W]`."""
    rows, channels, height, width = x.shape
    return x.reshape(rows // frames, frames, channels, height, width).transpose(1, 2)
