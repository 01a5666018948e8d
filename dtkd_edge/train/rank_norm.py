"""Batch norms whose statistics are of all ranks' batches, so that many processes make the steps of one with the whole batch.

On GPUs timm's conversion is used, which knows its own norms with an activation in them (torch's drops the activation). Torch has
no synchronised batch norm for CPUs; `RankBatchNorm` is one: torch's own kernels and one gather or sum of `[2, C]` each way.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from dtkd_edge.distill.ranks import batch_mean, batch_moments, ranks


class _NormOverRanks(torch.autograd.Function):
    """Batch norm in training, by the mean and variance over the samples of all ranks (Ioffe and Szegedy, 2015, with the batch
    spread out): (x, weight, bias, eps) → (normalised x, mean `[C]`, biased variance `[C]`); the last two carry no gradient.

    With x̂ = (x - mean) / σ, and ⟨·⟩ the mean over all ranks' samples, ∂L/∂x = weight / σ · (g - ⟨g⟩ - x̂ ⟨g x̂⟩).
    Statements in plain operations take three times as long on a CPU, which is more than a second process gains.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = batch_moments(*torch.batch_norm_update_stats(x, None, None, 0.0))
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, False), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, mean, variance = ctx.saved_tensors
        slope = slopes[0] if slopes[0].stride() == x.stride() else torch.empty_like(x).copy_(slopes[0])
        _, into_weight, into_bias = torch.ops.aten.native_batch_norm_backward(
            slope, x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        count = x.numel() // x.shape[1]
        hat, plain = batch_mean(torch.stack([into_weight, into_bias]) / count)
        inverse = (variance + ctx.eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        shape = [1, -1] + [1] * (x.ndim - 2)
        of_x = (-scale * inverse * hat).view(shape)
        constant = (-scale * plain).view(shape) - of_x * mean.view(shape)
        into_x = torch.addcmul(torch.addcmul(constant, slope, scale.view(shape)), x, of_x)
        return into_x, None if weight is None else into_weight, None if weight is None else into_bias, None


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
        normal, mean, variance = _NormOverRanks.apply(wide, self.weight, self.bias, self.eps)
        self._remember(mean, variance, ranks() * input.numel() // input.shape[1])
        out = self.then(normal.to(input.dtype))
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
