"""X3D frame by frame: its continual form (Hedegaard, Iosifidis: Continual 3D convolutional neural networks, ECCV 2022).

A convolution over k frames is the sum of k convolutions over one frame each. So a new frame goes through all k once, and what
the earlier frames gave is kept as k-1 partial sums at the output's size: the same multiply-accumulates per frame as in a clip,
but none is done twice. Every tensor has four dimensions or fewer.

Of a causal X3D this is the clip model after T frames, and after that a window of T frames that moves: gates and pooling are over
the last T frames, the convolutions remember without end of the window.

Of X3D's own weights, whose convolutions look one frame ahead (the stem's two), it is the continual form of the paper: each
convolution answers when the frames ahead are there, and the shortcut beside it waits as long. The label comes `delay` frames
late, 2 + the number of blocks. It is the same weights over a video without an end, and so another function than the clip model,
whose every layer pads the clip's ends with zeros: here neighbouring frames of the stream stand there. Squeeze-excitation
averages over the T frames up to the one it is applied to, not over T frames around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dtkd_edge.models.streaming import Counter, LastFrames, StreamForm, Tape

if TYPE_CHECKING:
    from dtkd_edge.models.x3d import X3D


class ContinualX3D(StreamForm):
    """States: `stem_i`, `conv_N_i` the partial sums of block N's convolution, `wait_N` the block's shortcut (not of a causal
    X3D), `gate_N [N, T-1, C]` and `pool [N, T-1, C]` the last frames' averages over space, `seen [N, 1]`."""

    def __init__(self, model: X3D) -> None:
        parts: list[Any] = list(model.blocks)
        stem, *stages, head = parts
        blocks = [block for stage in stages for block in stage.res_blocks]
        delay = 0 if model.causal else 2 + len(blocks)
        super().__init__(model, delay)
        tape, frames = self.tape, model.info.frames
        self.count = Counter(tape, frames + delay)
        self.stem_space = plane(stem.conv["conv_t"])
        self.stem_time = OverTime(tape, "stem", stem.conv["conv_xy"], stem.norm)
        late = [0 if model.causal else 3 + number for number in range(len(blocks))]
        self.blocks = nn.ModuleList(
            _ContinualBlock(tape, number, block, frames, late[number]) for number, block in enumerate(blocks)
        )
        self.pre = plane(head.pool["pre_conv"], head.pool["pre_norm"])
        self.pool = LastFrames(tape, "pool", frames, delay)
        self.post = plane(head.pool["post_conv"])
        self.proj: nn.Module = head.proj

    def step(self, frame: Tensor) -> dict[str, Tensor]:
        seen = self.count(frame)
        x = F.relu(self.stem_time(self.stem_space(frame)))
        for block in self.blocks:
            x = block(x, seen)
        pooled = self.pool(F.relu(self.pre(x)).mean((2, 3)), seen)
        logits: dict[str, Tensor] = self.proj(F.relu(self.post(pooled[..., None, None])).flatten(1))
        return logits


class OverTime(nn.Module):
    """A convolution over k frames, norm included, for one frame at a time: `[N, C, H, W]` → `[N, C', H', W']`.

    A frame is seen by the k answers from now on; `taps[i]` is what it adds to the one in k-1-i frames. States `NAME_0` to
    `NAME_k-2`: what the frames so far have added to the next k-1 answers.
    """

    def __init__(self, tape: Tape, name: str, conv: nn.Conv3d, norm: nn.BatchNorm3d) -> None:
        super().__init__()
        self.tape, self.name = tape, name
        whole = fuse_conv_bn_eval(conv.eval(), norm.eval())
        *before, now = whole.weight.unbind(2)
        self.taps = nn.ModuleList([*(_conv2d(conv, weight, None) for weight in before), _conv2d(conv, now, whole.bias)])

    def forward(self, x: Tensor) -> Tensor:
        *before, now = (tap(x) for tap in self.taps)
        so_far = [self.tape.take(f"{self.name}_{i}", now) for i in range(len(before))]
        for value, added in zip([*so_far[1:], None], reversed(before), strict=True):
            self.tape.keep(added if value is None else value + added)
        return now + so_far[0]


class _Gate(nn.Module):
    """Squeeze-excitation by the average of the last T frames."""

    def __init__(self, tape: Tape, name: str, gate: Any, frames: int, late: int) -> None:
        super().__init__()
        self.last = LastFrames(tape, name, frames, late)
        self.layers = nn.Sequential(plane(gate.block[0]), nn.ReLU(), plane(gate.block[2]), nn.Sigmoid())

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        gates: Tensor = self.layers(self.last(x.mean((2, 3)), seen)[..., None, None])
        return x * gates


class _ContinualBlock(nn.Module):
    """late: frames by which the block's answer lags behind; 0 where its weights were trained to look back only."""

    def __init__(self, tape: Tape, number: int, block: Any, frames: int, late: int) -> None:
        super().__init__()
        branch = block.branch2
        norm = block.branch1_norm if isinstance(block.branch1_norm, nn.BatchNorm3d) else None
        self.shortcut = plane(block.branch1_conv, norm) if isinstance(block.branch1_conv, nn.Conv3d) else nn.Identity()
        self.a = plane(branch.conv_a, branch.norm_a)
        self.b = OverTime(tape, f"conv_{number}", branch.conv_b, branch.norm_b[0])
        squeeze = not isinstance(branch.norm_b[1], nn.Identity)
        self.gate = _Gate(tape, f"gate_{number}", branch.norm_b[1], frames, late) if squeeze else None
        self.c = plane(branch.conv_c, branch.norm_c)
        self.tape, self.wait = tape, f"wait_{number}" if late else ""

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        if self.wait:
            before = self.tape.take(self.wait, shortcut)
            self.tape.keep(shortcut)
            shortcut = before
        x = self.b(F.relu(self.a(x)))
        if self.gate is not None:
            x = self.gate(x, seen)
        return F.relu(shortcut + self.c(F.silu(x)))


def plane(conv: nn.Conv3d, norm: nn.BatchNorm3d | None = None) -> nn.Conv2d:
    """A convolution over one frame, with its norm, as a 2-D one."""
    whole = conv if norm is None else fuse_conv_bn_eval(conv.eval(), norm.eval())
    return _conv2d(whole, whole.weight[:, :, 0], whole.bias)


def _conv2d(like: nn.Conv3d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    _, _, height, width = weight.shape
    _, *stride = like.stride
    _, *padding = (int(n) for n in like.padding)
    out = nn.Conv2d(
        like.in_channels, like.out_channels, (height, width), (stride[0], stride[1]), (padding[0], padding[1]),
        groups=like.groups, bias=bias is not None, dtype=weight.dtype,
    )  # fmt: skip
    with torch.no_grad():
        out.weight.copy_(weight)
        if out.bias is not None and bias is not None:
            out.bias.copy_(bias)
    return out
