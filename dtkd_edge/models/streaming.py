"""What a model is frame by frame: one frame and the past's states in, logits and the new states out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dtkd_edge.models.base import VideoModel


class Tape:
    """Hands a stream's layers what they kept from the frame before, in the order in which they run, and collects what they
    keep for the next one."""

    def __init__(self) -> None:
        self.begin(None)

    def begin(self, past: list[Tensor] | None) -> None:
        """A new frame. None: all states are empty, and their names and shapes are noted."""
        self.names: list[str] = []
        self.next: list[Tensor] = []
        self._past = past

    def take(self, name: str, like: Tensor) -> Tensor:
        """The state of that name; `like` has its shape."""
        self.names.append(name)
        return torch.zeros_like(like) if self._past is None else self._past[len(self.names) - 1]

    def keep(self, value: Tensor) -> None:
        """The next state in the order of `take`."""
        self.next.append(value)

    def end(self) -> list[Tensor]:
        """What was kept; the tape then holds no tensor, and a form can be copied."""
        kept, self.next, self._past = self.next, [], None
        return kept


class Counter(nn.Module):
    """How many frames have come, the newest included, as float32 `[N, 1]`; it stays at `most`."""

    def __init__(self, tape: Tape, most: int) -> None:
        super().__init__()
        self.tape, self.most = tape, most

    def forward(self, frame: Tensor) -> Tensor:
        like = frame[:, :1, 0, 0]
        seen = torch.clamp(self.tape.take("seen", like) + 1, max=float(self.most))
        self.tape.keep(seen)
        return seen


class LastFrames(nn.Module):
    """The mean of what the last `window` frames gave, of those there are: `[N, C]` → `[N, C]`.

    late: values of the first so many frames do not count (their convolutions reach in front of the first frame)
    """

    def __init__(self, tape: Tape, name: str, window: int, late: int = 0) -> None:
        super().__init__()
        self.tape, self.name, self.window, self.late = tape, name, window, late

    def forward(self, value: Tensor, seen: Tensor) -> Tensor:
        if self.late:
            value = value * torch.clamp(seen - self.late, 0.0, 1.0)
        if self.window == 1:
            return value
        past = self.tape.take(self.name, value[:, None].expand(-1, self.window - 1, -1))
        values = torch.cat([past, value[:, None]], 1)
        self.tape.keep(values[:, 1:])
        return values.sum(1) / torch.clamp(seen - self.late, 1.0, float(self.window))


class StreamForm(nn.Module):
    """Normalised float frames `[N, 3, H, W]` and the states → logits per head `[N, K]` and the new states, in their order.

    The states are float32, empty (zero) at the start, with the batch in front.

    delay: frames by which a label lags behind the frames that it is about
    """

    def __init__(self, model: VideoModel, delay: int = 0) -> None:
        super().__init__()
        self.info, self.heads, self.delay = model.info, model.heads, delay
        self.tape = Tape()

    def step(self, frame: Tensor) -> dict[str, Tensor]:
        """One frame through the layers, which have the tape → head → logits `[N, K]`."""
        raise NotImplementedError

    def forward(self, frame: Tensor, states: list[Tensor] | None = None) -> tuple[dict[str, Tensor], list[Tensor]]:
        """states: None are empty ones."""
        self.tape.begin(states)
        logits = self.step(frame)
        return logits, self.tape.end()

    def states(self, batch: int) -> dict[str, Tensor]:
        """Empty states by name, in the order of `forward`."""
        like = next(self.parameters())
        with torch.no_grad():
            _, values = self(like.new_zeros(1, 3, self.info.size, self.info.size))
        return {name: value.new_zeros(batch, *value.shape[1:]) for name, value in zip(self.tape.names, values, strict=True)}

    def reference(self, model: VideoModel) -> VideoModel:
        """What the stream says after a clip, as a model of clips: the one it was made of, where no label is late."""
        return FrameByFrame(self) if self.delay else model


class FrameByFrame(VideoModel):
    """A clip's frames in turn from empty states, then its last frame until the label has come: clips → logits."""

    def __init__(self, form: StreamForm) -> None:
        super().__init__()
        self.info, self.heads, self.form = form.info, form.heads, form

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        states: list[Tensor] | None = None
        frames = clips.unbind(2)
        for frame in (*frames, *frames[-1:] * self.form.delay):
            logits, states = self.form(frame, states)
        return logits
