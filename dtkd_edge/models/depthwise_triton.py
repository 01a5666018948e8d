"""Depthwise 3-D convolution on NVIDIA GPUs: forward, and the gradients of input and weight, as Triton kernels.

cuDNN's weight gradient of a depthwise 3-D convolution takes nine tenths of an X3D's training step (benchmarks/RESULTS.md). These
kernels read channels-last memory, keep their sums in float32 and give the same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

Triple = tuple[int, int, int]
# Of a block: positions, channels, warps. A thread holds few values, since the unrolled taps of a kernel keep all their loads in
# registers; with four times as many the kernels run 50 times slower, out of spilled registers.
_POSITIONS, _CHANNELS, _WARPS = 16, 64, 4
_PROGRAMS = 4096  # that the weight's gradient is spread over, at least: some rounds for every multiprocessor


@triton.jit
def _source(to, tap, size, S: tl.constexpr, P: tl.constexpr, BACKWARD: tl.constexpr):  # type: ignore[no-untyped-def]
    """Along one axis: where the values at `to` come from by that tap, and whether there is such a place."""
    if BACKWARD:
        place = to + P - tap
        there = (place >= 0) & (place % S == 0)
        place = place // S
    else:
        place = to * S - P + tap
        there = place >= 0
    return place, there & (place < size)


@triton.jit
def _spatial(x, w, y, total, d, h, wd, od, oh, ow, C: tl.constexpr,  # type: ignore[no-untyped-def]
             KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
             PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BACKWARD: tl.constexpr,
             BP: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """y `[total, C]` of positions `(n, od, oh, ow)` from x of positions `(n, d, h, wd)`; w `[KD·KH·KW, C]`.

    BACKWARD: x is the gradient of the output, y that of the input, so that y's position p takes from x's (p + P - k) / S, where
    that is whole.
    """
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    there, real = p < total, ch < C
    j = p % ow
    i = (p // ow) % oh
    t = (p // (ow * oh)) % od
    n = p // (ow * oh * od)
    acc = tl.zeros((BP, BC), dtype=tl.float32)
    for kd in range(KD):
        a, frame = _source(t, kd, d, SD, PD, BACKWARD)
        frame = there & frame
        for kh in tl.static_range(KH):
            b, row = _source(i, kh, h, SH, PH, BACKWARD)
            row = frame & row
            base = ((n * d + a) * h + b) * wd
            for kw in tl.static_range(KW):
                e, inside = _source(j, kw, wd, SW, PW, BACKWARD)
                inside = row & inside
                value = tl.load(x + ((base + e) * C)[:, None] + ch[None, :], mask=inside[:, None] & real[None, :], other=0.0)
                weight = tl.load(w + ((kd * KH + kh) * KW + kw) * C + ch, mask=real, other=0.0)
                acc += value.to(tl.float32) * weight.to(tl.float32)[None, :]
    out = y + (p * C)[:, None] + ch[None, :]
    tl.store(out, acc.to(y.dtype.element_ty), mask=there[:, None] & real[None, :])


@triton.jit
def _weight(x, g, part, total, share, d, h, wd, od, oh, ow, C: tl.constexpr,  # type: ignore[no-untyped-def]
            KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
            PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """Sums of x times g over a share of the output's positions, for one row of the kernel's 1 or 3 taps: part
    `[shares, KD·KH·KW, C]`."""
    line = tl.program_id(0)
    ch = tl.program_id(1) * BC + tl.arange(0, BC)
    piece = tl.program_id(2)
    real = ch < C
    kh = line % KH
    kd = line // KH
    acc0 = tl.zeros((BP, BC), dtype=tl.float32)
    acc1 = tl.zeros((BP, BC), dtype=tl.float32)
    acc2 = tl.zeros((BP, BC), dtype=tl.float32)
    first = piece * share
    for start in range(0, share, BP):
        p = first + start + tl.arange(0, BP)
        j = p % ow
        i = (p // ow) % oh
        t = (p // (ow * oh)) % od
        n = p // (ow * oh * od)
        a = t * SD - PD + kd
        b = i * SH - PH + kh
        row = (p < total) & (a >= 0) & (a < d) & (b >= 0) & (b < h)
        grad = tl.load(g + (p * C)[:, None] + ch[None, :], mask=row[:, None] & real[None, :], other=0.0).to(tl.float32)
        base = ((n * d + a) * h + b) * wd
        e = j * SW - PW
        at = x + ((base + e) * C)[:, None] + ch[None, :]
        inside = row & (e >= 0) & (e < wd)
        acc0 += tl.load(at, mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32) * grad
        if KW == 3:
            inside = row & (e >= -1) & (e < wd - 1)
            acc1 += tl.load(at + C, mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32) * grad
            inside = row & (e >= -2) & (e < wd - 2)
            acc2 += tl.load(at + 2 * C, mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32) * grad
    out = part + (piece * KD * KH + line) * KW * C + ch
    tl.store(out, tl.sum(acc0, axis=0), mask=real)
    if KW == 3:
        tl.store(out + C, tl.sum(acc1, axis=0), mask=real)
        tl.store(out + 2 * C, tl.sum(acc2, axis=0), mask=real)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _taps(weight: Tensor) -> Tensor:
    """`[C, 1, KD, KH, KW]` → `[KD·KH·KW, C]`."""
    return weight.flatten(1).t().contiguous()


def _run_spatial(x: Tensor, weight: Tensor, y: Tensor, stride: Triple, padding: Triple, backward: bool) -> Tensor:
    total = y.numel() // y.shape[1]
    grid = (triton.cdiv(total, _POSITIONS), triton.cdiv(y.shape[1], _CHANNELS))
    with torch.cuda.device_of(x):  # Triton launches on the current device, wherever the tensors are
        _spatial[grid](
            x, _taps(weight), y, total, *x.shape[2:], *y.shape[2:], y.shape[1], *weight.shape[2:], *stride, *padding,
            BACKWARD=backward, BP=_POSITIONS, BC=_CHANNELS, num_warps=_WARPS,
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
    channels, (deep, high, wide) = x.shape[1], weight.shape[2:]
    total = grad.numel() // channels
    programs = deep * high * triton.cdiv(channels, _CHANNELS)
    shares = max(1, min(triton.cdiv(_PROGRAMS, programs), triton.cdiv(total, 16 * _POSITIONS)))
    share = triton.cdiv(triton.cdiv(total, shares), _POSITIONS) * _POSITIONS
    shares = triton.cdiv(total, share)
    part = torch.empty(shares, deep * high * wide, channels, device=x.device, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _weight[(deep * high, triton.cdiv(channels, _CHANNELS), shares)](
            _last(x), _last(grad), part, total, share, *x.shape[2:], *grad.shape[2:], channels, *weight.shape[2:],
            *stride, *padding, BP=_POSITIONS, BC=_CHANNELS, num_warps=_WARPS,
        )  # fmt: skip
    return part.sum(0).t().reshape(weight.shape).to(weight.dtype)
