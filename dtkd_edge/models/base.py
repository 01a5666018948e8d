"""What every network here declares, so that training, distillation and export need to know nothing else about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dtkd_edge.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from dtkd_edge.models.streaming import StreamForm

Role = Literal["student", "cnn-teacher", "vit-teacher"]
Tensors = dict[str, Tensor]
Layout = Callable[[Tensors], Tensors]  # a published file's tensors → the same under our names; what it does not know stays


@dataclass(frozen=True)
class ModelInfo:
    """The input that a model was made for, and where its features can be tapped.

    frames, stride, size: its clip, T frames that are `stride` apart (1: spread over all of a video), size × size pixels
    mean, std:            of RGB in [0, 1]
    taps:                 feature name → channels, shallow to deep; every tap is `[B, C, T', H', W']`
    middle:               of a ViT, the tap half-way up, whose tokens still tell places apart (of a hierarchical one, the end
                          of the last stage but one); none: it has no such one
    """

    name: str
    roles: tuple[Role, ...]
    frames: int
    size: int
    stride: int = 1
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    taps: dict[str, int] = field(default_factory=dict)
    middle: str | None = field(default=None, repr=False)  # the caches of teachers' outputs are named after the repr

    @property
    def last_tap(self) -> str:
        return list(self.taps)[-1]


class VideoModel(nn.Module):
    """Normalised float clips `[B, 3, T, H, W]` → `{head: logits [B, K]}`.

    Subclasses set `info` and `heads` (head → classes) and implement the two halves below.
    """

    info: ModelInfo
    heads: dict[str, int]

    def forward_features(self, clips: Tensor) -> dict[str, Tensor]:
        """Taps by name, each `[B, C, T', H', W']`, shallow to deep."""
        raise NotImplementedError

    def forward_head(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Logits `[B, K]` of every head from the taps."""
        raise NotImplementedError

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters that start from nothing when the class count changes."""
        raise NotImplementedError

    def layouts(self) -> dict[str, Layout]:
        """Published checkpoints that load besides the model's own, by the name of who published them."""
        return {}

    def sources(self) -> dict[str, Callable[[str], Tensors]]:
        """What `weights:` can name besides a file: 'torchvision', 'timm', 'hf-hub' → see sources.py."""
        return {}

    def stream_form(self) -> StreamForm:
        """The model frame by frame (streaming.py). UsageError for what has no such form."""
        raise UsageError(
            f"--mode stream: {self.info.name} has no form that takes frame by frame", "nearest: --mode clip; TSM and X3D have one"
        )

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        return self.forward_head(self.forward_features(clips))


class Heads(nn.Module):
    """One linear classifier per head on pooled features `[B, C]`."""

    def __init__(self, channels: int, heads: dict[str, int], dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.ModuleDict({name: nn.Linear(channels, classes) for name, classes in heads.items()})

    def forward(self, pooled: Tensor) -> dict[str, Tensor]:
        pooled = self.dropout(pooled)
        return {name: linear(pooled) for name, linear in self.linear.items()}


class JointHeads(nn.Linear):
    """All heads in one linear layer on `[B, C]`: with one head its keys and shapes are those of a published classifier."""

    def __init__(self, channels: int, heads: dict[str, int]) -> None:
        super().__init__(channels, sum(heads.values()))
        self.heads = heads
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, pooled: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        logits = super().forward(pooled)
        if len(self.heads) == 1:
            return dict.fromkeys(self.heads, logits)
        out, start = {}, 0
        for name, classes in self.heads.items():
            out[name] = logits[:, start : start + classes]
            start += classes
        return out


def fit_clip(frames: Tensor, info: ModelInfo) -> Tensor:
    """Decoded clips for one network: uint8 RGB `[B, T, H, W, 3]` → normalised float `[B, 3, info.frames, size, size]`.

    Frames are picked evenly (the middle of equal segments) and scaled with an antialiased bilinear filter, so that several
    networks of different frames × size see the same clip, the same crop and the same flip.
    """
    total = frames.shape[1]
    if total != info.frames:
        picks = ((torch.arange(info.frames, device=frames.device) + 0.5) * total / info.frames).long()
        frames = frames[:, picks.clamp(max=total - 1)]
    batch, length, height, width, _ = frames.shape
    clips = frames.permute(0, 4, 1, 2, 3).float().div(255)
    if (height, width) != (info.size, info.size):
        flat = clips.transpose(1, 2).reshape(batch * length, 3, height, width)
        flat = nn.functional.interpolate(flat, (info.size, info.size), mode="bilinear", antialias=True)
        clips = flat.reshape(batch, length, 3, info.size, info.size).transpose(1, 2)
    mean, std = (_per_channel(tuple(values), clips.device) for values in (info.mean, info.std))
    return (clips - mean) / std


def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """`[1, 3, 1, 1, 1]`; on a GPU kept, since a copy to it would wait for it."""
    build = _kept if device.type == "cuda" else torch.tensor
    return build(values, device=device).view(1, 3, 1, 1, 1)


@lru_cache
def _kept(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def triple(value: Any, default: Any) -> tuple[float, float, float]:
    """mean or std as an option gives it, one number or three; `default` where it is None."""
    if value is None:
        value = default
    if isinstance(value, (int, float)):
        value = (value, value, value)
    r, g, b = (float(v) for v in value)
    if not all(math.isfinite(v) for v in (r, g, b)):
        raise RecipeError(f"options: mean and std must be finite, got {value}", "give one number or three")
    return r, g, b
