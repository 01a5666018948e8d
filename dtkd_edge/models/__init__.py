"""Students and teachers behind one registry. Importing this package is cheap: torch loads with the first name that needs it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtkd_edge.models.base import ModelInfo, VideoModel, fit_clip
    from dtkd_edge.models.registry import create_model, list_models

__all__ = ["ModelInfo", "VideoModel", "create_model", "fit_clip", "list_models"]
_OF_REGISTRY = ("create_model", "list_models")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"dtkd_edge.models.{'registry' if name in _OF_REGISTRY else 'base'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
