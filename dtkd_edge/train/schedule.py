"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

from dtkd_edge.distill.task import DistillationTask
from dtkd_edge.models.base import VideoModel
from dtkd_edge.recipe import OptimConfig


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """The factor on `lr` at `step` of `total`: a linear rise over the warm-up, then a half cosine to 0, steps, or constant."""
    warm = config.warmup * total
    if step < warm:
        return (step + 1) / (warm + 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return float(config.gamma ** sum(step >= share * total for share in config.milestones))
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))


def layer_depths(model: VideoModel) -> dict[int, int]:
    """id of a parameter → number of its block, in the order in which the model names them; what stands before the first block
    is 0, what stands behind the last one (norm, head) is one deeper than it, and what joins two stages of blocks goes with the
    block before."""
    head = {id(p) for p in model.head_parameters()}
    depths: dict[int, int] = {}
    depth, block = 0, ""
    for name, parameter in model.named_parameters():
        current = "" if id(parameter) in head else _block(model, name)
        if current is not None and current != block:
            depth, block = depth + 1, current
        depths[id(parameter)] = depth
    return depths


def _block(model: nn.Module, name: str) -> str | None:
    """The block that a parameter belongs to: blocks.3.attn.qkv.weight → blocks.3; features.4.5.attn.qkv.weight → features.4.5,
    where features.4 is a stage of blocks. "": to none; None: to what joins two stages, such as features.3.reduction.weight."""
    parts = name.split(".")
    module = model
    for place, part in enumerate(parts[:-1]):
        beside, module = module, module.get_submodule(part)
        if part.isdecimal() and not _is_stage(module):
            between = any(_is_stage(other) for other in beside.children())
            return None if between else ".".join(parts[: place + 1])
    return ""


def _is_stage(module: nn.Module) -> bool:
    """Whether it is a plain list of blocks: of modules with a name of their own and parts."""
    lists = (nn.Sequential, nn.ModuleList)
    blocks = list(module.children())
    return type(module) in lists and bool(blocks) and all(any(b.children()) and not isinstance(b, lists) for b in blocks)


def make_optimizer(config: OptimConfig, task: DistillationTask) -> torch.optim.Optimizer:
    """AdamW or SGD; no weight decay on norms and biases; the head may learn at its own rate (`head_lr`), a block at a share of
    the next one's (`layer_decay`), and so may the maps by which features are matched (`distill.regressor_lr`)."""
    student = task.student
    regressors = {id(p) for p in task.regressor_parameters()}
    head = {id(p) for p in student.head_parameters()}
    depth = layer_depths(student) if config.layer_decay < 1 else {}
    deepest = max(depth.values(), default=0)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in task.parameters():
        if parameter.requires_grad:
            factor = config.head_lr if id(parameter) in head else 1.0
            factor *= task.config.regressor_lr if id(parameter) in regressors else 1.0
            factor *= config.layer_decay ** (deepest - depth.get(id(parameter), deepest))
            groups.setdefault((parameter.ndim > 1, factor), []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": config.weight_decay if decayed else 0.0, "base_lr": config.lr * factor}
        for (decayed, factor), parameters in groups.items()
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
