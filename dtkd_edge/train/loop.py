"""One training, from the first epoch to the last: plain functions that read from top to bottom.

A teacher and the student go through the same loop; what differs is the task (`dtkd_edge.distill.task`).
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtkd_edge.console import Bar, progress
from dtkd_edge.data.dataset import ClipDataset
from dtkd_edge.distill.task import DistillationTask
from dtkd_edge.errors import CheckpointError, DataError, InputError
from dtkd_edge.recipe import OptimConfig
from dtkd_edge.train.checkpoint import TrainState, load_state, save_state
from dtkd_edge.train.log import RunLog
from dtkd_edge.train.schedule import learning_rate, make_optimizer, set_learning_rate
from dtkd_edge.train.scores import Scores
from dtkd_edge.train.teacher_cache import TeacherCache

Loader = Iterable[dict[str, Any]]


@dataclass
class Phase:
    """One training of a run: `name` is cnn, vit or student."""

    name: str
    config: OptimConfig
    task: DistillationTask
    data: ClipDataset
    loader: Loader
    evaluate: Callable[[], Scores]
    device: torch.device
    max_broken: float
    checkpoint: Path
    taught: TeacherCache | None = None
    broken: set[str] = field(default_factory=set)


def fit(phase: Phase, log: RunLog, *, resume: bool) -> None:
    """Train to the last epoch. With `resume`, go on after the last whole epoch on disk, bit for bit as if never stopped."""
    config, task = phase.config, phase.task
    optimizer = make_optimizer(config, task, task.student)
    state = load_state(phase.checkpoint) if resume else None
    first = 0
    if state is not None:
        restore(phase, optimizer, state)
        first, phase.broken = state.epoch, set(state.broken)
        log.note(f"{phase.name}: resumed after epoch {first} of {config.epochs}", phase=phase.name)
    log.rewind(phase.name, first)
    steps = steps_per_epoch(len(phase.data), config.batch_size)
    step = first * steps
    with progress(phase.name, config.epochs * steps) as bar:
        bar.advance(first * steps)
        for epoch in range(first, config.epochs):
            began = time.perf_counter()
            entry = train_epoch(phase, optimizer, epoch, step, steps, bar, log)
            step += steps
            last = epoch + 1 == config.epochs
            if last or (epoch + 1) % config.eval_every == 0:
                scores = phase.evaluate()
                entry |= {f"val_{key}": value for key, value in scores.table().items() if key != "n"}
            entry["seconds"] = round(time.perf_counter() - began, 3)
            log.add(entry)
            bar.note(_summary(entry))
            if last or (epoch + 1) % config.eval_every == 0:
                log_line(phase.name, epoch + 1, config.epochs, entry)
            if last or (epoch + 1) % config.checkpoint_every == 0:
                save_state(phase.checkpoint, current_state(phase, optimizer, epoch + 1, step))
    task.student.eval()


def current_state(phase: Phase, optimizer: torch.optim.Optimizer, epoch: int, step: int) -> TrainState:
    return TrainState(
        epoch,
        step,
        phase.task.state_dict(),
        optimizer.state_dict(),
        torch.get_rng_state(),
        sorted(phase.broken),
        device_rng=torch.cuda.get_rng_state(phase.device) if phase.device.type == "cuda" else None,
    )


def restore(phase: Phase, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
    """Put a saved state into task, optimiser and random generators. Rates and weight decay are the recipe's, which --resume may
    have changed. Raises CheckpointError for the state of another model, method or optimiser."""
    another = "take back what was changed with --set, or train into another --out"
    try:
        phase.task.load_state_dict(state.task)
    except RuntimeError as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise CheckpointError(
            f"{phase.checkpoint}: of another model or method: {reason[0].strip().rstrip('.')[:200]}", another
        ) from error
    own, saved = optimizer.state_dict()["param_groups"], state.optimizer["param_groups"]
    if [(g.keys(), g["params"]) for g in own] != [(g.keys(), g["params"]) for g in saved]:
        raise CheckpointError(f"{phase.checkpoint}: of another optimizer than {phase.config.optimizer}", another)
    optimizer.load_state_dict({"state": state.optimizer["state"], "param_groups": own})
    torch.set_rng_state(state.rng)
    if state.device_rng is not None and phase.device.type == "cuda":
        torch.cuda.set_rng_state(state.device_rng, phase.device)


def steps_per_epoch(clips: int, batch_size: int) -> int:
    """The last short batch is left out, unless it is the only one."""
    return max(clips // batch_size, 1)


def train_epoch(
    phase: Phase, optimizer: torch.optim.Optimizer, epoch: int, step: int, steps: int, bar: Bar, log: RunLog
) -> dict[str, Any]:
    """One pass over the data; returns the epoch's log entry: mean loss and terms, mean ω, variance of f_res, learning rate."""
    config, task = phase.config, phase.task
    total = config.epochs * steps
    phase.data.set_epoch(epoch)
    if phase.taught is not None:
        phase.taught.set_epoch(epoch, bar.note)
    set_train_mode(task, config.freeze_bn)
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=phase.device))
    count, right, lr = 0, torch.zeros((), device=phase.device), 0.0
    for number, batch in enumerate(phase.loader):
        count_broken(phase, batch["broken"], log)
        if batch["frames"] is None or len(batch["frames"]) < 2:  # one clip alone has no batch statistics
            continue
        lr = set_learning_rate(optimizer, learning_rate(config, step + number, total))
        frames = batch["frames"].to(phase.device, non_blocking=True)
        labels = {head: value.to(phase.device, non_blocking=True) for head, value in batch["labels"].items()}
        taught = None if phase.taught is None else phase.taught.read(batch["index"])
        result = task(frames, labels, taught=taught, progress=min((step + number) / total, 1.0))
        loss = result["loss"]
        if not torch.isfinite(loss):
            raise _not_finite(phase, result["terms"], batch["index"].tolist(), epoch, number)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_grad > 0:
            norm = nn.utils.clip_grad_norm_([p for p in task.parameters() if p.requires_grad], config.clip_grad)
            if not torch.isfinite(norm):
                raise _not_finite(phase, {"gradient": norm}, batch["index"].tolist(), epoch, number)
        optimizer.step()
        collect(sums, result)
        right += sum((result["output"][h].argmax(1) == labels[h]).float().mean() for h in labels) / len(labels)
        count += 1
        bar.advance()
    if count == 0:
        raise DataError(f"{phase.name}: no whole batch in epoch {epoch + 1}", "look for broken clips with: dtkd-edge data check")
    means = {name: round(float(value) / count, 6) for name, value in sums.items()}
    return {"phase": phase.name, "epoch": epoch + 1, "lr": lr, **means, "train_top1": round(float(right) / count, 4)}


def set_train_mode(task: DistillationTask, freeze_bn: bool) -> None:
    task.train()
    if freeze_bn:
        for module in task.student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def collect(sums: dict[str, torch.Tensor], result: dict[str, Any]) -> None:
    """Add up what the log reports, on the device: no synchronisation inside an epoch."""
    sums["loss"] += result["loss"].detach()
    for name, value in result["terms"].items():
        sums[f"loss_{name}"] += value
    if result.get("omega") is not None:
        for name, value in zip(("cnn", "vit"), result["omega"].mean(0), strict=True):
            sums[f"omega_{name}"] += value
    if result.get("residual_var") is not None:
        sums["residual_var"] += result["residual_var"]


def count_broken(phase: Phase, broken: list[tuple[int, str]], log: RunLog) -> None:
    """Name each clip that does not decode once, and stop when they are more than the recipe allows."""
    for _, message in broken:
        if message not in phase.broken:
            phase.broken.add(message)
            log.note(f"skipped: {message}", phase=phase.name, broken=message)
    if len(phase.broken) > phase.max_broken * len(phase.data):
        raise DataError(
            f"{len(phase.broken)} of {len(phase.data)} training clips do not decode, more than data.max_broken "
            f"= {phase.max_broken:g} allows",
            "look at them with: dtkd-edge data check   (or raise data.max_broken)",
        )


def _not_finite(phase: Phase, terms: dict[str, torch.Tensor], clips: list[int], epoch: int, number: int) -> InputError:
    bad = [name for name, value in terms.items() if not math.isfinite(float(value))] or ["loss"]
    files = ", ".join(str(phase.data.catalogue[i].path) for i in clips[:3])
    return InputError(
        f"{phase.name}: {' and '.join(bad)} is not finite at epoch {epoch + 1}, step {number + 1} (clips: {files}, …)",
        "lower train.lr, or continue from the last whole epoch with --resume after changing it",
    )


def _summary(entry: dict[str, Any]) -> str:
    parts = [f"loss {entry['loss']:.3f}", f"train {entry['train_top1']:.3f}"]
    parts += [f"{k.removeprefix('val_')} {v:.3f}" for k, v in entry.items() if k.startswith("val_") and k.endswith("top1")]
    if "omega_vit" in entry:
        parts.append(f"ω vit {entry['omega_vit']:.2f}")
    return "  ".join(parts)


def log_line(name: str, epoch: int, epochs: int, entry: dict[str, Any]) -> None:
    from dtkd_edge.console import say

    say(f"{name:8s} epoch {epoch:3d}/{epochs}  {_summary(entry)}  ({entry['seconds']:.1f} s)")
