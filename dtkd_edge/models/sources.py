"""Weights by the name of who publishes them: torchvision, timm, a repository on the Hugging Face hub.

Each comes through its own library and that one's cache, so that what was fetched once needs no network.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from dtkd_edge.errors import CheckpointError, DtkdEdgeError, NotHereError
from dtkd_edge.models.base import Tensors

Fetch = Callable[[str], Tensors]  # what stands behind the colon of `weights: torchvision:…` → tensors


def torchvision_weights(name: str) -> Fetch:
    """`torchvision` (its default) or `torchvision:KINETICS400_V1`, kept in TORCH_HOME."""

    def fetch(tag: str) -> Tensors:
        from torchvision.models import get_model_weights

        known = get_model_weights(name)
        if tag and tag not in known.__members__:
            raise CheckpointError(f"weights: torchvision has no {tag} of {name}", f"one of: {', '.join(known.__members__)}")
        weights = known[tag] if tag else known.DEFAULT
        # weights_only is this library's rule: a file that was changed in the cache may hold code.
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))

    return _said(fetch, f"torchvision's weights of {name}")


def timm_weights(name: str, **options: Any) -> Fetch:
    """`timm` (its default) or `timm:TAG`; timm fits position embeddings to the image size in `options`."""

    def fetch(tag: str) -> Tensors:
        import timm

        full = f"{name}.{tag}" if tag else name
        if tag and not timm.models.is_model_pretrained(full):
            tags = ", ".join(known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")) or "none"
            raise CheckpointError(f"weights: timm has no {full}", f"its tags: {tags}")
        return _timm(full, options)

    return _said(fetch, f"timm's weights of {name}")


def hub_weights(**options: Any) -> Fetch:
    """`hf-hub:OWNER/NAME`, a repository in timm's format."""

    def fetch(repository: str) -> Tensors:
        if repository.count("/") != 1:
            raise CheckpointError(f"weights: hf-hub:{repository}: no repository", "write hf-hub:OWNER/NAME")
        return _timm(f"hf-hub:{repository}", options)

    return _said(fetch, "weights from the Hugging Face hub")


def transformers_weights(architecture: str) -> Fetch:
    """`hf-hub:OWNER/NAME`, a repository in transformers' format; what it lacks of the architecture is left out, not made up."""

    def fetch(repository: str) -> Tensors:
        import transformers

        if repository.count("/") != 1:
            raise CheckpointError(f"weights: hf-hub:{repository}: no repository", "write hf-hub:OWNER/NAME")
        model, loading = getattr(transformers, architecture).from_pretrained(repository, output_loading_info=True)
        return {key: value for key, value in model.state_dict().items() if key not in loading["missing_keys"]}

    return _said(fetch, "weights from the Hugging Face hub")


def _timm(name: str, options: dict[str, Any]) -> Tensors:
    import timm

    return dict(timm.create_model(name, pretrained=True, **options).state_dict())


def _said(fetch: Fetch, what: str) -> Fetch:
    """What the libraries raise (no network, no such repository, a broken download, a file with code in it) as one line."""

    def wrapped(tag: str) -> Tensors:
        try:
            return fetch(tag)
        except DtkdEdgeError:
            raise
        except Exception as error:
            if isinstance(error, pickle.UnpicklingError) or "weights_only=True blocked" in str(error):
                raise CheckpointError(
                    f"weights: {what} hold more than tensors, and code in a file is never run",
                    "take a repository that has model.safetensors, or give a file",
                ) from error
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise NotHereError(
                f"weights: {what} cannot be had: {reason}", "fetch them once where there is a network, or give a file"
            ) from error

    return wrapped
