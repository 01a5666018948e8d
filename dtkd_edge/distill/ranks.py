"""What a loss has to know of the batch when several processes hold parts of it; nothing changes without torch.distributed.

Every rank must hold equally many samples. Each rank then computes the same statistic, or the same loss, as one process with the
whole batch, and the average over ranks that data-parallel training takes of the gradients is the gradient of that one loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


def ranks() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_batch(features: Tensor) -> Tensor:
    """`[B, D]` of this rank → `[ranks · B, D]` of all, with gradient."""
    if ranks() == 1:
        return features
    gathered: Tensor = _Gather.apply(features)
    return gathered


class _Gather(torch.autograd.Function):
    """Rank r's part of the gradient is the sum over ranks of what each of them has for that part."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.count = len(features)
        parts = [torch.empty_like(features, memory_format=torch.contiguous_format) for _ in range(ranks())]
        distributed.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        slope = slopes[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(slope)
        first = distributed.get_rank() * ctx.count
        return slope[first : first + ctx.count]


def batch_mean(statistic: Tensor) -> Tensor:
    """A mean over this rank's samples → the mean over those of all ranks. Without gradient: for targets and their scales."""
    if ranks() == 1:
        return statistic
    statistic = statistic.detach().clone()
    distributed.all_reduce(statistic)
    return statistic / ranks()


def batch_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Means and biased variances over this rank's samples, of any equal shapes → those over the samples of all ranks, by one
    message. Without gradient."""
    mean, variance = mean.detach(), variance.detach()
    if ranks() == 1:
        return mean, variance
    means, variances = gather_batch(torch.stack([mean, variance])[None]).unbind(1)
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)  # within the ranks, and between them
