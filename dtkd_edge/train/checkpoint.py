"""Full training state on disk, one file per phase, so that a run killed at any instant goes on from its last one."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dtkd_edge.errors import CheckpointError
from dtkd_edge.files import atomic_path
from dtkd_edge.models.weights import refusal

VERSION = 5


@dataclass
class TrainState:
    """Everything that the next epoch depends on. `epoch` counts finished epochs; `rng` and `device_rng` are torch's generators
    of the CPU and of the CUDA device (dropout draws from the latter), one per process; `ema` is the moving average of weights;
    `first_losses` say where the loss began; `best` is the best epoch so far."""

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
    first_losses: list[float] | None = None
    best: dict[str, Any] | None = None


def previous(path: Path) -> Path:
    """Where the state before the newest one is kept while a phase trains."""
    return path.with_name(path.name + ".previous")


def save_state(path: Path, state: TrainState) -> None:
    whole = io.BytesIO()  # torch's own file writer does not say that a disk is full
    torch.save(asdict(state), whole)
    with atomic_path(path) as aside:
        aside.write_bytes(whole.getbuffer())
        with suppress(OSError):  # the first state, or a file system without links
            previous(path).unlink(missing_ok=True)
            previous(path).hardlink_to(path)


def load_state(path: Path, tell: Callable[[str], None] = lambda _: None) -> TrainState | None:
    """The newest whole state, or None where there is none yet. tell: given a line where that is the one before the newest."""
    if not path.is_file():
        return None
    if not _whole(path) and _whole(previous(path)):
        tell(f"{path}: damaged; the state before it is whole")
        with suppress(FileNotFoundError):  # another rank has done it
            previous(path).replace(path)  # or the next one would keep the damaged file as the one before it
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


def _whole(path: Path) -> bool:
    """Whether every byte of the archive is as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False
