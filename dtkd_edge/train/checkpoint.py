"""Full training state on disk, one file per phase, so that a run killed at any instant goes on from its last whole epoch."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dtkd_edge.errors import CheckpointError
from dtkd_edge.files import atomic_path
from dtkd_edge.models.weights import refusal

VERSION = 2


@dataclass
class TrainState:
    """Everything that the next epoch depends on. `epoch` counts finished epochs; `rng` and `device_rng` are torch's generators
    of the CPU and of the CUDA device (dropout draws from the latter), one per process; `ema` is the moving average of weights."""

    epoch: int
    step: int
    task: dict[str, Any]
    optimizer: dict[str, Any]
    rng: list[torch.Tensor]
    broken: list[str]
    version: int = VERSION
    device_rng: list[torch.Tensor] | None = None
    ema: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None


def save_state(path: Path, state: TrainState) -> None:
    whole = io.BytesIO()  # torch's own file writer does not say that a disk is full
    torch.save(asdict(state), whole)
    with atomic_path(path) as aside:
        aside.write_bytes(whole.getbuffer())


def load_state(path: Path) -> TrainState | None:
    """The saved state, or None where there is none yet."""
    if not path.is_file():
        return None
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
        state = TrainState(**raw)
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of this version: {refusal(str(error))}", "remove it to train that phase again"
        ) from error
    if state.version != VERSION:
        other = f"{path}: checkpoint version {state.version}, this dtkd-edge reads {VERSION}"
        raise CheckpointError(other, "remove it to train that phase again")
    return state
