"""Time that only looks back, for 3-D CNNs: what a network may do that has to answer after every frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dtkd_edge.models.depthwise import conv3d


class PastConv3d(nn.Conv3d):
    """A 3-D convolution that sees the past only: in time k-1 zero frames stand in front and none behind."""

    def forward(self, x: Tensor) -> Tensor:
        _, height, width = (int(n) for n in self.padding)
        x = F.pad(x, (0, 0, 0, 0, self.kernel_size[0] - 1, 0))
        return conv3d(x, self, (0, height, width))


class PastMean(nn.Module):
    """At each frame the mean of the frames up to it: `[B, C, T, 1, 1]`, T at most `frames`, → the same shape."""

    weight: Tensor

    def __init__(self, frames: int) -> None:
        super().__init__()
        upto = torch.triu(torch.ones(frames, frames))
        self.register_buffer("weight", upto / upto.sum(0), persistent=False)  # a product, which every runtime has; few a CumSum

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(2) @ self.weight[: x.shape[2], : x.shape[2]].to(x.dtype)
        return mean[..., None, None]
