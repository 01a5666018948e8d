"""Batch norms whose statistics are of all ranks' batches, so that many processes make the steps of one with the whole batch.

On GPUs timm's conversion is used, which knows its own norms with an activation in them (torch's drops the activation). Torch has
no synchronised batch norm for CPUs; `RankBatchNorm` is one, plain operations and one gather of `[2, C]` each way.
"""

from __future__ import annotations

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dtkd_edge.distill.ranks import gather_batch, ranks


class RankBatchNorm(_BatchNorm):
    """Takes the place of a batch norm of any dimension, on any device: its parameters, buffers and activation. Every rank must
    hold equally many samples."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.train(norm.training)
        self.then = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        """Whatever the replaced norm took."""

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, …]` → the same. In training by the mean and variance over the samples of all ranks, with their gradients."""
        if not self.training:
            out: Tensor = self.then(super().forward(input))
            return out
        wide = input if input.dtype == torch.float64 else input.float()
        variances, means = torch.var_mean(wide, [0, *range(2, input.ndim)], correction=0)
        means, variances = gather_batch(torch.stack([means, variances])[None]).unbind(1)  # [ranks, C] each
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)  # within the ranks, and between them
        self._remember(mean.detach(), variance.detach(), ranks() * input.numel() // input.shape[1])
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        shape = [1, -1] + [1] * (input.ndim - 2)
        out = self.then(torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(input.dtype))
        return out

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype) * count / max(count - 1, 1), share)


def synchronise(module: nn.Module, device: torch.device) -> None:
    """Let the batch norms below `module` share their statistics over ranks, in place."""
    if device.type == "cuda":
        convert_sync_batchnorm(module)
        return
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, RankBatchNorm(child))
        else:
            synchronise(child, device)
