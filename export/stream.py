"""The streaming form of a causal TSM: one frame and the past's states in, logits and the new states out.

The online form of TSM (Lin, Gan, Han, ICCV 2019, section 4): a causal shift needs of the past only the last frame's first C/fold
channels in front of each shifted convolution. The clip model's logits are the mean of its frames' logits, because its classifier
is linear, so the last T-1 frames' logits are a state too: after T frames from empty states the output equals the clip model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dtkd_edge.errors import UsageError
from dtkd_edge.export import graph
from dtkd_edge.export.targets import OPSET
from dtkd_edge.models.base import VideoModel
from dtkd_edge.models.registry import create_model
from dtkd_edge.models.saved import ModelCard
from dtkd_edge.models.shift import Shift

if TYPE_CHECKING:
    import onnx


class _Tape:
    """Hands the states to the shifts in the order in which they run, and collects the new ones."""

    def __init__(self) -> None:
        self.past: list[Tensor] = []
        self.next: list[Tensor] = []


class _StreamShift(nn.Module):
    """A causal Shift for one frame: the past's channels come from the tape."""

    def __init__(self, shift: Shift, tape: _Tape) -> None:
        super().__init__()
        self.net, self.fold, self.tape = shift.net, shift.fold, tape

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1] // self.fold
        past = self.tape.past[len(self.tape.next)]
        self.tape.next.append(x[:, :n])
        out: Tensor = self.net(torch.cat([past, x[:, n:]], 1))
        return out


def check_causal(model: VideoModel) -> None:
    """UsageError unless all time mixing of the model is causal shifts."""
    shifts = [m for m in model.modules() if isinstance(m, Shift)]
    if not shifts:
        raise UsageError(f"--mode stream: {model.info.name} is no TSM", "nearest: --mode clip")
    if not all(shift.causal for shift in shifts):
        raise UsageError(
            f"--mode stream: this {model.info.name} was trained with shifts from the future too",
            "train a causal one with: --set student.options.causal=true",
        )


class StreamGraph(nn.Module):
    """What is traced: frame uint8 `[N, H, W, 3]` and the states → logits of every head, then the new states.

    States, all float32 and empty (zero) at the start: `shift_i [N, C/fold, H', W']`; per head `HEAD_past [N, T-1, K]`, the logits
    of the last frames; `seen [N, 1]`, how many frames have come, at most T.
    """

    def __init__(self, model: VideoModel, card: ModelCard) -> None:
        super().__init__()
        check_causal(model)
        self.frames = card.frames
        one = create_model(card.model, card.heads, frames=1, size=card.size, **card.options)
        one.load_state_dict(model.state_dict())
        self.tape = _Tape()
        places = [(name, module) for name, module in one.named_modules() if isinstance(module, Shift)]
        for name, shift in places:
            parent, _, last = name.rpartition(".")
            setattr(one.get_submodule(parent), last, _StreamShift(shift, self.tape))
        self.edge = graph.EdgeGraph(one.eval(), model.info)
        self.heads = self.edge.heads
        self.shifts = _shapes(model, card)
        assert len(self.shifts) == len(places)

    def states(self, batch: int) -> dict[str, Tensor]:
        """Empty states by name, in the order of the graph's inputs."""
        classes = self.edge.student.heads
        out = {f"shift_{i}": torch.zeros(batch, *shape) for i, shape in enumerate(self.shifts)}
        if self.frames > 1:
            out |= {f"{head}_past": torch.zeros(batch, self.frames - 1, classes[head]) for head in self.heads}
        return out | {"seen": torch.zeros(batch, 1)}

    def forward(self, frames: Tensor, states: list[Tensor]) -> tuple[Tensor, ...]:
        count = len(self.shifts)
        self.tape.past, self.tape.next = list(states[:count]), []
        now = self.edge(frames.to(torch.float32)[:, None])  # cast first, as TensorRT asks
        seen = torch.clamp(states[-1] + 1, max=float(self.frames))
        logits, past = list(now), []
        if self.frames > 1:
            for i, value in enumerate(now):
                window = torch.cat([states[count + i], value[:, None]], 1)
                past.append(window[:, 1:])
                logits[i] = window.sum(1) / seen
        return (*logits, *self.tape.next, *past, seen)


def to_stream_onnx(model: VideoModel, card: ModelCard, path: Path, *, batch: int = 1, opset: int = OPSET) -> onnx.ModelProto:
    """Trace, clean and check the streaming graph of a causal TSM, write it to `path` and return it."""
    stream = StreamGraph(model, card).eval()
    states = stream.states(batch)
    example = torch.zeros(batch, card.size, card.size, 3, dtype=torch.uint8)
    proto = graph.trace(
        stream, (example, list(states.values())), opset, model.info.name,
        inputs=["frames", *states], outputs=[*stream.heads, *(f"{name}_next" for name in states)],
    )  # fmt: skip
    return graph.finish(proto, card, path, opset, shape=list(example.shape), states=state_shapes(states))


def state_shapes(states: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in states.items()}


def _shapes(model: VideoModel, card: ModelCard) -> list[tuple[int, int, int]]:
    """`[C/fold, H, W]` of what each shift keeps, in the order in which they run; seen in one pass of the clip model."""
    found: list[tuple[int, int, int]] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, Shift)
        _, channels, height, width = inputs[0].shape
        found.append((channels // module.fold, height, width))

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, Shift)]
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, card.frames, card.size, card.size))
    finally:
        for hook in hooks:
            hook.remove()
    return found
