"""What a model costs: parameters, and multiply-accumulates of one clip. Nothing is computed: the networks run without data."""

from __future__ import annotations

import copy

import torch

from dtkd_edge.models.base import VideoModel
from dtkd_edge.models.streaming import StreamForm


def count_parameters(model: VideoModel) -> int:
    return sum(p.numel() for p in model.parameters())


def count_macs(model: VideoModel | StreamForm) -> int:
    """Multiply-accumulates of one clip, or of one frame of a stream: convolutions and matrix products, as papers count them
    (half of torch's FLOPs)."""
    from torch.utils.flop_counter import FlopCounterMode

    info = model.info
    ghost = copy.deepcopy(model).to("meta").eval()
    for module in ghost.modules():
        module.__class__ = getattr(module, "counted_as", module.__class__)
    # With gradients, since torch's fused transformer layer for inference is not counted.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        length = [] if isinstance(model, StreamForm) else [info.frames]
        ghost(torch.zeros(1, 3, *length, info.size, info.size, device="meta"))
    return int(counter.get_total_flops()) // 2
