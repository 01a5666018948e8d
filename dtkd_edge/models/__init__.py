"""Students and teachers behind one registry."""

from dtkd_edge.models.base import ModelInfo, VideoModel, fit_clip
from dtkd_edge.models.registry import create_model, list_models

__all__ = ["ModelInfo", "VideoModel", "create_model", "fit_clip", "list_models"]
