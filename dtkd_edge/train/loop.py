"""One training, from the first epoch to the last: plain functions that read from top to bottom.

A teacher and the student go through the same loop; what differs is the task (`dtkd_edge.distill.task`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dtkd_edge.console import Bar, counted, progress
from dtkd_edge.data.dataset import ClipDataset
from dtkd_edge.data.loader import Loader
from dtkd_edge.distill.task import DistillationTask, TeacherOutput
from dtkd_edge.errors import CheckpointError, DataError, NotHereError
from dtkd_edge.models.base import VideoModel
from dtkd_edge.recipe import AugmentConfig, DataConfig, OptimConfig
from dtkd_edge.train.best import Best
from dtkd_edge.train.checkpoint import TrainState, load_state, previous, save_state
from dtkd_edge.train.engine import Engine
from dtkd_edge.train.log import RunLog
from dtkd_edge.train.loss_check import Step, check_loss
from dtkd_edge.train.memory import is_out_of_memory, memory_errors, too_large
from dtkd_edge.train.mixing import mix
from dtkd_edge.train.schedule import learning_rate, make_optimizer, set_learning_rate
from dtkd_edge.train.scores import Scores
from dtkd_edge.train.teacher_cache import TeacherCache

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3


@dataclass
class Phase:
    """One training of a run: `name` is cnn, vit or student. evaluate: scores of the model it is given."""

    name: str
    config: OptimConfig
    task: DistillationTask
    data: ClipDataset
    loader: Loader | list[dict[str, Any]]
    evaluate: Callable[[VideoModel], Scores]
    engine: Engine
    source: DataConfig
    checkpoint: Path
    taught: TeacherCache | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    broken: set[str] = field(default_factory=set)
    first_losses: list[float] = field(default_factory=list)
    best: Best = field(default_factory=Best)

    def __post_init__(self) -> None:
        self.device = self.engine.device
        self.ema: ModelEmaV3 | None = None
        if self.config.ema:
            from timm.utils import ModelEmaV3  # two seconds of import that a training without it need not wait for

            self.ema = ModelEmaV3(self.task.student, self.config.ema, use_warmup=True)
        self.module: nn.Module = self.task

    @property
    def section(self) -> str:
        """Of the recipe that its settings stand in."""
        return "train" if self.name == "student" else f"teachers.{self.name}.train"

    @property
    def model(self) -> VideoModel:
        """What is evaluated, and kept of the last or the best epoch: the moving average where there is one."""
        return self.task.student if self.ema is None else self.ema.module


def fit(phase: Phase, log: RunLog, *, resume: bool) -> int:
    """Train to the last epoch. With `resume`, go on after the last whole epoch on disk, bit for bit as if never stopped. At the
    end the student holds what is to be kept, of the last epoch or of the best. Returns which one that is."""
    config, task, engine = phase.config, phase.task, phase.engine
    optimizer = make_optimizer(config, task)
    state = load_state(phase.checkpoint, lambda line: log.note(line, phase=phase.name)) if resume else None
    first = 0
    if state is not None:
        restore(phase, optimizer, state)
        first, phase.broken, phase.first_losses = state.epoch, set(state.broken), state.first_losses or []
        log.note(f"{phase.name}: resumed after epoch {first} of {config.epochs}", phase=phase.name)
    log.rewind(phase.name, first)
    phase.module = engine.distribute(task, config.sync_bn)
    steps = len(phase.loader)
    step = first * steps
    with progress(phase.name, config.epochs * steps, hidden=not engine.main) as bar:
        bar.advance(first * steps)
        for epoch in range(first, config.epochs):
            began = time.perf_counter()
            entry = train_epoch(phase, optimizer, epoch, step, steps, bar, log)
            step += steps
            if not (config.sync_bn or config.freeze_bn):
                for model in dict.fromkeys((task.student, phase.model)):  # a set would have another order in every process
                    engine.average_norms(model)
            last = epoch + 1 == config.epochs
            if last or (epoch + 1) % config.eval_every == 0:
                scores = phase.evaluate(phase.model)
                phase.best.look(epoch + 1, scores, phase.model if config.keep == "best" else None)
                entry |= {f"val_{key}": value for key, value in scores.table().items() if key != "n"}
            entry["seconds"] = round(time.perf_counter() - began, 3)
            log.add(entry)
            bar.note(_summary(entry))
            if engine.main and (last or (epoch + 1) % config.eval_every == 0):
                log_line(phase.name, epoch + 1, config.epochs, entry)
            if last or (epoch + 1) % config.checkpoint_every == 0:
                save(phase, optimizer, epoch + 1, step)
    if engine.main:
        previous(phase.checkpoint).unlink(missing_ok=True)
    if phase.best.weights is not None:
        task.student.load_state_dict(phase.best.weights)
    elif phase.ema is not None:
        task.student.load_state_dict(phase.ema.module.state_dict())
    if config.keep == "best" and phase.best.weights is None:
        log.note(f"{phase.section}.keep=best: no epoch was evaluated since it was asked for; kept: the last", phase=phase.name)
    elif said := phase.best.words(config.epochs, phase.section):
        log.note(f"{phase.name}: {said}", phase=phase.name)
    task.student.eval()
    return config.epochs if phase.best.weights is None else phase.best.epoch


def save(phase: Phase, optimizer: torch.optim.Optimizer, epoch: int, step: int) -> None:
    """Rank 0 writes the state; the random generators of all ranks are in it."""
    rng = phase.engine.gather(torch.get_rng_state())
    on_device = phase.device.type == "cuda"
    device_rng = phase.engine.gather(torch.cuda.get_rng_state(phase.device)) if on_device else None
    if phase.engine.main:
        save_state(
            phase.checkpoint,
            TrainState(
                epoch,
                step,
                phase.task.state_dict(),
                optimizer.state_dict(),
                rng,
                sorted(phase.broken),
                device_rng=device_rng,
                ema=None if phase.ema is None else phase.ema.module.state_dict(),
                scaler=phase.engine.scaler.state_dict(),
                first_losses=phase.first_losses,
                best=vars(phase.best),
            ),
        )
    phase.engine.wait()


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
        other = f"{phase.checkpoint}: of another optimizer than {phase.config.optimizer}, or with other groups of rates"
        raise CheckpointError(other, another)
    optimizer.load_state_dict({"state": state.optimizer["state"], "param_groups": own})
    if phase.ema is not None:
        if state.ema is None:
            raise CheckpointError(f"{phase.checkpoint}: holds no moving average", "take back --set train.ema, or " + another)
        phase.ema.module.load_state_dict(state.ema)
    phase.best = Best.read(state.best, phase.config.keep)
    if state.scaler:
        phase.engine.scaler.load_state_dict(state.scaler)
    rank = phase.engine.rank
    if rank < len(state.rng):  # more processes than before: the new ones keep the generator they were seeded with
        torch.set_rng_state(state.rng[rank])
        if state.device_rng is not None and phase.device.type == "cuda":
            torch.cuda.set_rng_state(state.device_rng[rank], phase.device)


def train_epoch(
    phase: Phase, optimizer: torch.optim.Optimizer, epoch: int, step: int, steps: int, bar: Bar, log: RunLog
) -> dict[str, Any]:
    """One pass over the data; returns the epoch's log entry: mean loss and terms, mean ω, variance of f_res, learning rate."""
    config, task, engine = phase.config, phase.task, phase.engine
    total = config.epochs * steps
    phase.data.set_epoch(epoch)
    if phase.taught is not None:
        phase.taught.set_epoch(epoch, bar.note)
    set_train_mode(task, config.freeze_bn)
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=phase.device))
    count, lr = 0, 0.0
    before: Step | None = None
    optimizer.zero_grad(set_to_none=True)
    for number, batch in enumerate(phase.loader):
        count_broken(phase, batch["broken"], log)
        if len(batch["frames"]) < 2:  # one clip alone has no batch statistics
            if engine.world > 1:  # the other ranks would wait for this one
                raise DataError(
                    f"{phase.name}: a batch has fewer than two clips that decode", f"see: {phase.source.check_command}"
                )
            continue
        lr = set_learning_rate(optimizer, learning_rate(config, step + number, total))
        frames = to_device(batch["frames"], phase.device)
        labels = {head: to_device(value, phase.device) for head, value in batch["labels"].items()}
        shared = None
        if (mixture := mix(frames, phase.augment)) is not None:
            frames, others = mixture.frames, {head: value[mixture.partner] for head, value in labels.items()}
            shared = (others, mixture.share)
        taught = None if phase.taught is None else phase.taught.read(batch["index"])
        more = (count + 1) % config.accumulate != 0 and number + 1 < steps
        inputs = Inputs(frames, labels, taught, shared, progress=min((step + number) / total, 1.0))
        result = forward_backward(phase, inputs, more)
        if result is None:
            raise out_of_memory(phase, inputs)
        values = {"loss": result["loss"].detach(), **result["terms"]}
        if not more:
            values |= update(phase, optimizer, step + number)
        if before is not None:
            check_loss(phase, before, epoch, log)
        before = Step(number, values, batch["index"].tolist())
        collect(sums, result, labels)
        count += 1
        bar.advance()
    if before is None:
        raise DataError(
            f"{phase.name}: no whole batch in epoch {epoch + 1}", f"look for broken clips with: {phase.source.check_command}"
        )
    check_loss(phase, before, epoch, log)
    for message in sorted(set().union(*engine.gather(phase.broken))):
        count_broken(phase, [(-1, message)], log)  # what other ranks have met
    means = {name: round(float(engine.mean(value)) / count, 6) for name, value in sums.items()}
    train_top1 = round(means.pop("train_top1"), 4)
    return {"phase": phase.name, "epoch": epoch + 1, "lr": lr, **means, "train_top1": train_top1}


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """From pinned memory where it is a GPU: the copy then waits in the device's queue, and the host does not."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


@dataclass
class Inputs:
    """What a step reads: see `DistillationTask.forward`."""

    frames: torch.Tensor
    labels: dict[str, torch.Tensor]
    taught: dict[str, TeacherOutput] | None
    shared: tuple[dict[str, torch.Tensor], float] | None
    progress: float

    def first(self, count: int) -> Inputs:
        """The first clips of the batch."""

        def cut(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {key: value[:count] for key, value in values.items()}

        taught = self.taught and {
            n: TeacherOutput(cut(t.logits), cut(t.features), t.pooled[:count]) for n, t in self.taught.items()
        }
        shared = self.shared and (cut(self.shared[0]), self.shared[1])
        return Inputs(self.frames[:count], cut(self.labels), taught, shared, self.progress)


def forward_backward(phase: Phase, inputs: Inputs, more: bool) -> dict[str, Any] | None:
    """Add a batch's gradients to those there are; None where the memory is not enough for it."""
    engine = phase.engine
    try:
        with engine.accumulating(phase.module, more):
            with engine.autocast():
                result: dict[str, Any] = phase.module(
                    inputs.frames, inputs.labels, taught=inputs.taught, shared=inputs.shared, progress=inputs.progress
                )
            engine.scaler.scale(result["loss"] / phase.config.accumulate).backward()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None  # not the error: its frames hold what filled the memory
    return result


def out_of_memory(phase: Phase, inputs: Inputs) -> NotHereError:
    def fits(count: int) -> bool:
        phase.task.zero_grad(set_to_none=True)
        return forward_backward(phase, inputs.first(count), more=False) is not None

    alone = phase.engine.world == 1  # the other ranks would wait for this one's gradients
    return too_large(phase.section, len(inputs.frames), phase.config.accumulate, fits if alone else None)


def update(phase: Phase, optimizer: torch.optim.Optimizer, step: int) -> dict[str, torch.Tensor]:
    """One step of the optimiser on the gradients there are, then of the moving average. Returns the gradient's norm, where it is
    asked for and has to be finite (a scaled half-precision one need not be: that step is left out)."""
    config, scaler = phase.config, phase.engine.scaler
    values = {}
    if config.clip_grad > 0:
        scaler.unscale_(optimizer)
        trained = [p for p in phase.task.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, config.clip_grad, foreach=True)
        values = {} if scaler.is_enabled() else {"gradient": norm}
    # The optimizer's memory is one or two values per weight, made in the first step; the batch has no part in it.
    smaller = f"take a smaller network, or {phase.section}.optimizer=sgd, which keeps one value per weight and adamw two"
    with memory_errors(f"{phase.section}: a step of {config.optimizer}", smaller):
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if phase.ema is not None:
        phase.ema.update(phase.task.student, step)
    return values


def set_train_mode(task: DistillationTask, freeze_bn: bool) -> None:
    task.train()
    if freeze_bn:
        for module in task.student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


@torch.no_grad()
def collect(sums: dict[str, torch.Tensor], result: dict[str, Any], labels: dict[str, torch.Tensor]) -> None:
    """Add up what the log reports, on the device: no synchronisation inside an epoch."""
    sums["loss"] += result["loss"].detach()
    for name, value in result["terms"].items():
        sums[f"loss_{name}"] += value
    if result.get("omega") is not None:
        for name, value in zip(("cnn", "vit"), result["omega"].mean(0), strict=True):
            sums[f"omega_{name}"] += value
    if result.get("residual_var") is not None:
        sums["residual_var"] += result["residual_var"]
    right = [(result["output"][head].argmax(1) == labels[head]).float().mean() for head in labels]
    sums["train_top1"] += torch.stack(right).mean()


def count_broken(phase: Phase, broken: list[tuple[int, str]], log: RunLog) -> None:
    """Name each clip that does not decode once, and stop when they are more than the recipe allows."""
    for _, message in broken:
        if message not in phase.broken:
            phase.broken.add(message)
            log.skipped(message, phase=phase.name)
    most = phase.source.max_broken
    if len(phase.broken) > most * len(phase.data):
        raise DataError(
            f"{len(phase.broken)} of {counted(len(phase.data), 'training clip')} do not decode, more than data.max_broken "
            f"= {most:g} allows",
            f"look at them with: {phase.source.check_command}   (or raise data.max_broken)",
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
