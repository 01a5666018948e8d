"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

from dtkd_edge.models.base import VideoModel
from dtkd_edge.recipe import OptimConfig


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """The factor on `lr` at `step` of `total`: a linear rise over the warm-up, then a half cosine to 0 (or constant)."""
    warm = config.warmup * total
    if step < warm:
        return (step + 1) / (warm + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))


def make_optimizer(config: OptimConfig, task: nn.Module, student: VideoModel) -> torch.optim.Optimizer:
    """AdamW or SGD; no weight decay on norms and biases; the head may learn at its own rate (`head_lr`)."""
    head = {id(p) for p in student.head_parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in task.parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim > 1, id(parameter) in head), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "base_lr": config.lr * (config.head_lr if in_head else 1.0),
        }
        for (decayed, in_head), parameters in groups.items()
    ]
    for group in settings:
        group["lr"] = group["base_lr"]
    if config.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=config.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(settings, lr=config.lr, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group's own rate; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])
