"""What a loss has to know of the batch when several processes hold parts of it; nothing changes without torch.distributed.

Every rank must hold equally many samples. Each rank then computes the same statistic, or the same loss, as one process with the
whole batch, and the average over ranks that data-parallel training takes of the gradients is the gradient of that one loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def ranks() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_batch(features: Tensor) -> Tensor:
    """`[B, D]` of this rank → `[ranks · B, D]` of all, with gradient."""
    if ranks() == 1:
        return features
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(features.contiguous()))


def batch_mean(statistic: Tensor) -> Tensor:
    """A mean over this rank's samples → the mean over those of all ranks. Without gradient: for targets and their scales."""
    if ranks() == 1:
        return statistic
    statistic = statistic.detach().clone()
    distributed.all_reduce(statistic)
    return statistic / ranks()
