"""Published checkpoints have other names for the same tensors: helpers to state them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from dtkd_edge.models.base import Tensors

# A pattern in a published name, and what of our name stands there.
Pattern = tuple[str, str | Callable[[re.Match[str]], str]]


def rename(tensors: Tensors, names: dict[str, str]) -> Tensors:
    """Tensors under other names, where `names` (published → ours) has one."""
    return {names.get(key, key): value for key, value in tensors.items()}


def substitute(tensors: Tensors, patterns: Iterable[Pattern]) -> Tensors:
    """Tensors under names in which every pattern, one after the other, is replaced."""
    out = {}
    for key, value in tensors.items():
        name = key
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        out[name] = value
    return out
