"""A trained model on disk: NAME.safetensors (weights) and NAME.json (the card that says how to rebuild and feed it)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dtkd_edge import __version__
from dtkd_edge.errors import CheckpointError
from dtkd_edge.files import atomic_path, write_json
from dtkd_edge.models.base import VideoModel
from dtkd_edge.models.registry import create_model
from dtkd_edge.preprocess import Preprocess

SCHEMA: Final = "dtkd-edge/model/1"


class ModelCard(BaseModel):
    """What the weights alone do not say."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)

    schema_: Literal["dtkd-edge/model/1"] = Field(SCHEMA, alias="schema")
    version: str
    model: str
    frames: int
    stride: int
    size: int
    options: dict[str, Any] = {}
    labels: dict[str, list[str]]
    preprocess: Preprocess
    metrics: dict[str, float] = {}
    epoch: int | None = None  # of which the weights are, where that is not the last one (train.keep=best)

    @property
    def heads(self) -> dict[str, int]:
        return {head: len(names) for head, names in self.labels.items()}


def save_model(stem: Path, model: VideoModel, card: ModelCard) -> None:
    """Write `stem`.safetensors, then `stem`.json: who finds the card finds the weights too."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_path(stem.with_suffix(".safetensors")) as aside:
        aside.write_bytes(save(tensors))  # safetensors' own file writer does not say that a disk is full
    write_json(stem.with_suffix(".json"), card.model_dump(mode="json", by_alias=True))


def read_card(stem: Path) -> ModelCard:
    path = stem.with_suffix(".json")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file", "has this run finished? continue it with: dtkd-edge train --resume")
    raw: Any = None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return ModelCard.model_validate(raw)
    except (ValidationError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = ": ".join([*map(str, first["loc"]), first["msg"]]) if first else str(error)
        wrote = raw.get("version") if isinstance(raw, dict) else None
        if wrote is not None and wrote != __version__:
            raise CheckpointError(
                f"{path}: written by dtkd-edge {wrote}, this is {__version__}: {reason}", f"use dtkd-edge {wrote}, or train again"
            ) from error
        raise CheckpointError(f"{path}: not a model card of this version: {reason}", "train the run again") from error


def load_model(stem: Path) -> tuple[VideoModel, ModelCard]:
    """Rebuild a saved model, in eval mode on the CPU. Every weight must be there and fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    card = read_card(stem)
    path = stem.with_suffix(".safetensors")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not readable: {error}", "train the run again") from error
    stride = card.stride if card.preprocess.sampling.kind == "dense" else None
    model = create_model(card.model, card.heads, frames=card.frames, size=card.size, stride=stride, **card.options)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{path}: does not fit {card.model}: {reason}", "train the run again") from error
    return model.eval(), card
