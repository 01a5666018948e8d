"""Depthwise 3-D convolutions that train fast on NVIDIA GPUs too; elsewhere, and in exports, they are torch's."""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Triple = tuple[int, int, int]
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST = 2**31  # values of a tensor


@lru_cache
def _kernels() -> ModuleType | None:
    """The Triton kernels; none without Triton, which comes with torch's builds for CUDA alone, or with DTKD_EDGE_KERNELS=0."""
    if os.environ.get("DTKD_EDGE_KERNELS") == "0":
        return None
    try:
        from dtkd_edge.models import depthwise_triton
    except ImportError:
        return None
    return depthwise_triton


@lru_cache
def _works(device: torch.device) -> bool:
    """Whether they run there, or a warning why not: Triton needs a C compiler and Python's headers, and not too old a GPU."""
    one = torch.zeros(1, 1, 1, 1, 1, device=device)
    try:
        cast(Any, _kernels()).forward(one, one, (1, 1, 1), (0, 0, 0))
    except Exception as error:  # of many kinds: no compiler, a compiler that fails, a GPU that Triton does not know
        warnings.warn(
            f"Triton does not run here: {error}. Depthwise 3-D convolutions are cuDNN's; an X3D trains several times slower so. "
            "Triton needs a C compiler and Python's headers (apt install gcc python3-dev); DTKD_EDGE_KERNELS=0 leaves it out",
            stacklevel=2,
        )
        return False
    return True


class _Depthwise(torch.autograd.Function):
    """Differentiable once, and not by functorch; torch's own is asked with DTKD_EDGE_KERNELS=0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Triple, padding: Triple) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return cast(Tensor, cast(Any, _kernels()).forward(x, weight, stride, padding))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (x, weight), kernels = ctx.saved_tensors, cast(Any, _kernels())
        of_input, of_weight = ctx.needs_input_grad[:2]
        dx = kernels.input_gradient(grad, weight, x.shape, ctx.stride, ctx.padding) if of_input else None
        dw = kernels.weight_gradient(x, grad, weight, ctx.stride, ctx.padding) if of_weight else None
        return dx, dw, None, None


def conv3d(x: Tensor, conv: nn.Conv3d, padding: Triple) -> Tensor:
    """What `conv` makes of x `[B, C, T, H, W]` with this padding instead of its own."""
    if _is_fast(x, conv):
        weight = conv.weight
        if torch.is_autocast_enabled("cuda") and x.dtype is not torch.float64:  # which autocast leaves alone
            half = torch.get_autocast_dtype("cuda")
            x, weight = x.to(half), weight.to(half)
        if x.dtype is weight.dtype and x.dtype in _TYPES:
            return cast(Tensor, _Depthwise.apply(x, weight, cast(Triple, conv.stride), padding))
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)


def _is_fast(x: Tensor, conv: nn.Conv3d) -> bool:
    """Whether the kernels do this: on a GPU of CUDA, depthwise with one output a channel, rows of 1 or 3 taps, no bias, no
    dilation, and positions that 32 bit count. Empty batches, and clips that do not fit the weight, are torch's affair."""
    return (
        x.is_cuda
        and torch.version.hip is None
        and x.device == conv.weight.device
        and x.ndim == 5
        and is_depthwise(conv)
        and x.shape[1] == conv.in_channels
        and conv.bias is None
        and conv.kernel_size[2] in (1, 3)
        and conv.dilation == (1, 1, 1)
        and conv.padding_mode == "zeros"
        and 0 < x.numel() < _MOST
        and not torch.compiler.is_compiling()  # nor exporting: both trace what they can see through
        and not torch.jit.is_tracing()
        and _kernels() is not None
        and _works(x.device)
    )


def is_depthwise(conv: nn.Conv3d) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels


class Conv3d(nn.Conv3d):
    """torch's, with kernels of our own on CUDA where it is depthwise."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.padding, str):
            return super().forward(x)
        return conv3d(x, self, cast(Triple, self.padding))


def replace_depthwise(model: nn.Module) -> None:
    """Every depthwise `nn.Conv3d` of a foreign network becomes ours, in place; its weights and its name stay."""
    for module in model.modules():
        if type(module) is nn.Conv3d and is_depthwise(module):
            module.__class__ = Conv3d
