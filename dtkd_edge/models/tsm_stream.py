"""A causal TSM frame by frame: the online form of TSM (Lin, Gan, Han, ICCV 2019, section 4).

A causal shift needs of the past only the last frame's first C/fold channels in front of each shifted convolution. The clip
model's logits are the mean of its frames' logits, because its classifier is linear, so the last T-1 frames' logits are a state
too: after T frames from empty states the output equals the clip model's.
"""

from __future__ import annotations

import copy
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dtkd_edge.errors import UsageError
from dtkd_edge.models.base import VideoModel
from dtkd_edge.models.shift import Shift
from dtkd_edge.models.streaming import Counter, LastFrames, StreamForm, Tape


class _StreamShift(nn.Module):
    """A causal Shift for one frame: the past's channels come from the tape."""

    def __init__(self, shift: Shift, tape: Tape, name: str) -> None:
        super().__init__()
        self.net, self.fold, self.tape, self.name = shift.net, shift.fold, tape, name

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1] // self.fold
        past = self.tape.take(self.name, x[:, :n])
        self.tape.keep(x[:, :n])
        out: Tensor = self.net(torch.cat([past, x[:, n:]], 1))
        return out


class FrameModel(Protocol):
    """What is streamed: a 2-D CNN over frames with shifts, whose logits are the mean of its frames' logits."""

    def forward_frame(self, frame: Tensor) -> dict[str, Tensor]: ...


class ShiftStream(StreamForm):
    """States: `shift_i [N, C/fold, H', W']`; per head `HEAD_past [N, T-1, K]`, the logits of the last frames; `seen [N, 1]`.

    UsageError for a model with a shift from the future.
    """

    def __init__(self, model: VideoModel) -> None:
        super().__init__(model)
        if not all(module.causal for module in model.modules() if isinstance(module, Shift)):
            raise UsageError(
                f"--mode stream: this {model.info.name} was trained with shifts from the future too",
                "train a causal one with: --set student.options.causal=true",
            )
        self.one = copy.deepcopy(model).eval()
        for number, (name, shift) in enumerate((n, m) for n, m in list(self.one.named_modules()) if isinstance(m, Shift)):
            parent, _, last = name.rpartition(".")
            setattr(self.one.get_submodule(parent), last, _StreamShift(shift, self.tape, f"shift_{number}"))
        self.count = Counter(self.tape, model.info.frames)
        self.past = nn.ModuleDict({head: LastFrames(self.tape, f"{head}_past", model.info.frames) for head in model.heads})

    def step(self, frame: Tensor) -> dict[str, Tensor]:
        now = cast(FrameModel, self.one).forward_frame(frame)
        seen = self.count(frame)
        return {head: self.past[head](value, seen) for head, value in now.items()}
