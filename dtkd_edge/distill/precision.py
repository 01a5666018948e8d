"""Losses are computed in full precision, whatever precision the networks run in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_widen(item) for item in value]
    return value


def _device(values: Sequence[Any]) -> str | None:
    """Of the first tensor there is, in lists too."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device.type
        if isinstance(value, Sequence) and not isinstance(value, str) and (inside := _device(value)):
            return inside
    return None


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a loss outside autocast, on float32 copies of its half-precision tensors (float64 stays float64).

    Autocast would otherwise send every matrix product in a loss back to bfloat16, whose 8 bits are too few for differences of
    features, for squared distances and for cosines near 1.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        values = [*args, *kwargs.values()]
        with torch.autocast(_device(values) or "cpu", enabled=False):
            wide = {key: _widen(value) for key, value in kwargs.items()}
            return function(*[_widen(value) for value in args], **wide)

    return run
