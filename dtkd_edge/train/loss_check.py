"""Is the loss still a number, and near where it began? If not, the training stops and says where."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import TYPE_CHECKING

import torch

from dtkd_edge.errors import InputError
from dtkd_edge.train.log import RunLog

if TYPE_CHECKING:
    from dtkd_edge.train.loop import Phase

FIRST_STEPS = 10  # whose median says where the loss began
LAST_WORD = 3.0  # seconds


class Step:
    """A step's values on their way to the CPU. They are looked at one step later: the device need not stand still for that."""

    def __init__(self, number: int, values: dict[str, torch.Tensor], clips: list[int]) -> None:
        self.number, self.clips, self._names = number, clips, list(values)
        self._values = torch.stack([value.float() for value in values.values()])
        self._copied: torch.cuda.Event | None = None
        if self._values.is_cuda:
            self._values = self._values.to("cpu", non_blocking=True)  # into pinned memory: the copy waits in the device's queue
            self._copied = torch.cuda.Event()
            self._copied.record()

    def values(self) -> dict[str, float]:
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))


def check_loss(phase: Phase, step: Step, epoch: int, log: RunLog) -> None:
    """InputError where a value is not finite, or the loss is more than `max_rise` times the median of the phase's first steps
    (of which a median below 1 counts as 1: who begins with a taught network begins near 0). What diverges is soon a
    thousand times as large.

    The loss here is that of all terms at their full weights: those that rise from 0 would otherwise make a healthy one rise."""
    values = step.values()
    weights, config = phase.task.weights, phase.config
    loss = sum(weights[name] * values[name] for name in weights if name in values)
    where = f"at epoch {epoch + 1}, step {step.number + 1}"
    if bad := [name for name, value in values.items() if not math.isfinite(value)]:
        bad = [name for name in bad if name not in ("loss", "gradient")] or bad[:1]  # the term that it came from
        what = f"{' and '.join(bad)} is not finite {where}"
        limit = ""
    else:
        usual = max(median(phase.first_losses), 1.0) if phase.first_losses else math.inf
        if not config.max_rise or loss <= config.max_rise * usual:
            if len(phase.first_losses) < FIRST_STEPS:
                phase.first_losses.append(loss)
            return
        term = max(weights, key=lambda name: weights[name] * values.get(name, 0.0))
        what = f"the loss rose to {loss:.4g}, most of it {term}, {where}, from {usual:.3g}"
        limit = f"; {phase.section}.max_rise={config.max_rise:g} is the limit"
    hint = f"lower {phase.section}.lr, also to go on after the last checkpoint with --resume{limit}"
    files = [str(phase.data.catalogue[i].path) for i in step.clips]
    if bad == ["gradient"] and phase.engine.world > 1:  # the mean over processes, of which another one's loss may be to blame
        log.add({"phase": phase.name, "stopped": what, "step": step.number + 1})
        time.sleep(LAST_WORD)  # the launcher ends all as soon as one has ended, and the one to blame is to speak first
        raise InputError(f"{phase.name}: {what} in process {phase.engine.rank}; see what the others said", hint)
    log.add_from_any({"phase": phase.name, "stopped": what, "step": step.number + 1, "clips": files})
    named = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
    raise InputError(f"{phase.name}: {what} (clips: {named}; all in {log.path.name})", hint)
