"""Pictures mixed in pairs: mixup (Zhang et al., ICLR 2018) and CutMix (Yun et al., ICCV 2019) of clips.

Every network sees the mixed clip, so that the teachers answer to what the student sees; only the labels are shared out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dtkd_edge.recipe import AugmentConfig


@dataclass
class Mixture:
    """frames: uint8 `[B, T, H, W, 3]`; clip b is `share` of its own and 1 - `share` of clip `partner[b]`."""

    frames: Tensor
    partner: Tensor
    share: float


def mix(frames: Tensor, config: AugmentConfig) -> Mixture | None:
    """One mixture per batch, its share drawn from Beta(α, α) by torch's CPU generator; None where neither is switched on. With
    both on, one of the two is drawn for each batch."""
    alphas = {"mixup": config.mixup, "cutmix": config.cutmix}
    kinds = [kind for kind, alpha in alphas.items() if alpha > 0]
    if not kinds:
        return None
    kind = kinds[int(torch.randint(len(kinds), ()))]
    share = float(torch.distributions.Beta(alphas[kind], alphas[kind]).sample())
    partner = torch.randperm(len(frames)).to(frames.device)
    if kind == "mixup":
        mixed = frames.float() * share + frames[partner].float() * (1 - share)
        return Mixture(mixed.round().to(torch.uint8), partner, share)
    height, width = frames.shape[2:4]
    side = (1 - share) ** 0.5
    tall, wide = round(height * side), round(width * side)
    top, left = int(torch.randint(height - tall + 1, ())), int(torch.randint(width - wide + 1, ()))
    mixed = frames.clone()
    mixed[:, :, top : top + tall, left : left + wide] = frames[partner, :, top : top + tall, left : left + wide]
    return Mixture(mixed, partner, 1 - tall * wide / (height * width))
