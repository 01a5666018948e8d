"""Depthwise 3-D convolution on NVIDIA GPUs: forward, and the gradients of input and weight, as Triton kernels.

cuDNN's weight gradient of a depthwise 3-D convolution takes nine tenths of an X3D's training step (benchmarks/RESULTS.md). These
kernels read channels-last memory, keep their sums in float32 and give the same bits every time.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

Triple = tuple[int, int, int]
_POSITIONS, _CHANNELS = 64, 64  # of a block
_PROGRAMS = 2048  # that the weight's gradient is spread over, at least: some rounds for every multiprocessor


@triton.jit  # type: ignore[untyped-decorator]
def _spatial(x, w, y, total, d, h, wd, od, oh, ow, c,  # type: ignore[no-untyped-def]
             KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
             PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BACKWARD: tl.constexpr,
             BP: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """y `[total, c]` of positions `(n, od, oh, ow)` from x of positions `(n, d, h, wd)`; w `[KD·KH·KW, c]`.

    BACKWARD: x is the gradient of the output and y that of the input, so that y's position p takes from x's (p + P - k) / S, where
    that is whole.
    """
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    there, real = p < total, ch < c
    j = p % ow
    i = (p // ow) % oh
    t = (p // (ow * oh)) % od
    n = (p // (ow * oh * od)).to(tl.int64)
    acc = tl.zeros((BP, BC), dtype=tl.float32)
    for kd in tl.static_range(KD):
        for kh in tl.static_range(KH):
            for kw in tl.static_range(KW):
                if BACKWARD:
                    a, b, e = t + PD - kd, i + PH - kh, j + PW - kw
                    whole = (a % SD == 0) & (b % SH == 0) & (e % SW == 0) & (a >= 0) & (b >= 0) & (e >= 0)
                    a, b, e = a // SD, b // SH, e // SW
                    inside = there & whole & (a < d) & (b < h) & (e < wd)
                else:
                    a, b, e = t * SD - PD + kd, i * SH - PH + kh, j * SW - PW + kw
                    inside = there & (a >= 0) & (a < d) & (b >= 0) & (b < h) & (e >= 0) & (e < wd)
                at = ((n * d + a) * h + b) * wd + e
                value = tl.load(x + at[:, None] * c + ch[None, :], mask=inside[:, None] & real[None, :], other=0.0)
                weight = tl.load(w + ((kd * KH + kh) * KW + kw) * c + ch, mask=real, other=0.0)
                acc += value.to(tl.float32) * weight.to(tl.float32)[None, :]
    out = y + p.to(tl.int64)[:, None] * c + ch[None, :]
    tl.store(out, acc.to(y.dtype.element_ty), mask=there[:, None] & real[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _weight(x, g, part, total, share, d, h, wd, od, oh, ow, c,  # type: ignore[no-untyped-def]
            KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
            PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """Sums of x times g over a share of the output's positions for one tap of the kernel: part `[shares, KD·KH·KW, c]`."""
    tap = tl.program_id(0)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    piece = tl.program_id(2)
    real = ch < c
    kw = tap % KW
    kh = (tap // KW) % KH
    kd = tap // (KW * KH)
    acc = tl.zeros((BP, BC), dtype=tl.float32)
    first = piece * share
    for start in range(0, share, BP):
        p = first + start + tl.arange(0, BP)
        there = (p < total) & (start + tl.arange(0, BP) < share)
        j = p % ow
        i = (p // ow) % oh
        t = (p // (ow * oh)) % od
        n = (p // (ow * oh * od)).to(tl.int64)
        a, b, e = t * SD - PD + kd, i * SH - PH + kh, j * SW - PW + kw
        inside = there & (a >= 0) & (a < d) & (b >= 0) & (b < h) & (e >= 0) & (e < wd)
        at = ((n * d + a) * h + b) * wd + e
        mask = inside[:, None] & real[None, :]
        value = tl.load(x + at[:, None] * c + ch[None, :], mask=mask, other=0.0)
        grad = tl.load(g + p.to(tl.int64)[:, None] * c + ch[None, :], mask=mask, other=0.0)
        acc += value.to(tl.float32) * grad.to(tl.float32)
    out = part + (piece * tl.num_programs(0) + tap) * c + ch
    tl.store(out, tl.sum(acc, axis=0), mask=real)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _taps(weight: Tensor) -> Tensor:
    """`[C, 1, KD, KH, KW]` → `[KD·KH·KW, C]`."""
    return weight.flatten(1).t().contiguous()


def _run_spatial(x: Tensor, weight: Tensor, y: Tensor, stride: Triple, padding: Triple, backward: bool) -> Tensor:
    total = y.numel() // y.shape[1]
    grid = (triton.cdiv(total, _POSITIONS), triton.cdiv(y.shape[1], _CHANNELS))
    _spatial[grid](
        x, _taps(weight), y, total, *x.shape[2:], *y.shape[2:], y.shape[1], *weight.shape[2:], *stride, *padding,
        BACKWARD=backward, BP=_POSITIONS, BC=_CHANNELS,
    )  # fmt: skip
    return y


def forward(x: Tensor, weight: Tensor, stride: Triple, padding: Triple) -> Tensor:
    """`[B, C, D, H, W]` and `[C, 1, KD, KH, KW]` → `[B, C, D', H', W']`, channels last in memory."""
    out = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)]
    y = torch.empty((*x.shape[:2], *out), device=x.device, dtype=x.dtype, memory_format=torch.channels_last_3d)
    return _run_spatial(_last(x), weight, y, stride, padding, False)


def input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, stride: Triple, padding: Triple) -> Tensor:
    x = torch.empty(shape, device=grad.device, dtype=grad.dtype, memory_format=torch.channels_last_3d)
    return _run_spatial(_last(grad), weight, x, stride, padding, True)


def weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, stride: Triple, padding: Triple) -> Tensor:
    channels, taps = x.shape[1], weight[0].numel()
    total = grad.numel() // channels
    columns = triton.cdiv(channels, _CHANNELS)
    shares = max(1, min(triton.cdiv(_PROGRAMS, taps * columns), triton.cdiv(total, 4 * _POSITIONS)))
    share = triton.cdiv(triton.cdiv(total, shares), _POSITIONS) * _POSITIONS
    part = torch.empty(shares, taps, channels, device=x.device, dtype=torch.float32)
    _weight[(taps, columns, shares)](
        _last(x), _last(grad), part, total, share, *x.shape[2:], *grad.shape[2:], channels, *weight.shape[2:], *stride, *padding,
        BP=_POSITIONS, BC=_CHANNELS,
    )  # fmt: skip
    return part.sum(0).t().reshape(weight.shape).to(weight.dtype)
