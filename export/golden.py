"""What the float32 network says of real clips other than the traced one, and of black, white and noise.

Some of it is stored in the artefact (`golden.npz`), so that the same check runs later on any machine, without torch. No torch at
module level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.artifact import Artifact, Manifest
from dtkd_edge.console import say
from dtkd_edge.data.catalogue import open_split
from dtkd_edge.errors import ArtifactError
from dtkd_edge.export import clips
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.recipe import DataConfig

if TYPE_CHECKING:
    from dtkd_edge.models.base import VideoModel

GOLDEN = "golden.npz"
STORED = 4  # real clips that travel with the artefact
CLIPS = 64  # real clips that are compared when exporting

Logits = dict[str, NDArray[np.float32]]
Run = Callable[[NDArray[np.uint8]], Logits]


@dataclass
class Golden:
    """Clips and what the float32 network says of them.

    frames: uint8 `[n, T, H, W, 3]`; real: bool `[n]`, False for the adversarial ones; logits: head → float32 `[n, K]`;
    scales: head → float32 `[n]`, what an error of that clip's logits is measured by (see `scales`)
    """

    frames: NDArray[np.uint8]
    real: NDArray[np.bool_]
    logits: Logits
    scales: Logits

    @classmethod
    def of(cls, frames: NDArray[np.uint8], real: NDArray[np.bool_], logits: Logits) -> Golden:
        return cls(frames, real, logits, {head: scales(value, real) for head, value in logits.items()})

    def stored(self) -> NDArray[np.int64]:
        """The clips that travel: STORED real ones, spread over those there are, and all adversarial ones."""
        real = np.flatnonzero(self.real)
        some = real[np.unique(np.linspace(0, len(real) - 1, min(STORED, len(real))).round().astype(int))] if len(real) else real
        return np.concatenate([some, np.flatnonzero(~self.real)])

    def pick(self, numbers: NDArray[np.int64]) -> Golden:
        logits, yardsticks = ({h: v[numbers] for h, v in part.items()} for part in (self.logits, self.scales))
        return Golden(self.frames[numbers], self.real[numbers], logits, yardsticks)

    def save(self, path: Path) -> None:
        """Those of `stored`."""
        kept = self.pick(self.stored())
        arrays = {f"logits.{head}": value for head, value in kept.logits.items()}
        arrays |= {f"scales.{head}": value for head, value in kept.scales.items()}
        np.savez_compressed(path, frames=kept.frames, real=kept.real, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, artifact: Artifact) -> Golden:
        path = artifact.folder / GOLDEN
        if GOLDEN not in artifact.manifest.files:
            raise ArtifactError(f"{artifact.folder}: no {GOLDEN} to verify against", "export the run again")
        try:
            with np.load(path, allow_pickle=False) as stored:
                if not any(name.startswith("scales.") for name in stored.files):
                    raise ArtifactError(
                        f"{path}: stored by an earlier version, without the spread of the logits", "export the run again"
                    )
                logits, yardsticks = (
                    {head: stored[f"{name}.{head}"] for head in artifact.manifest.labels} for name in ("logits", "scales")
                )
                return cls(stored["frames"], stored["real"], logits, yardsticks)
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{path}: not readable: {error}", "export the run again") from error


def scales(logits: NDArray[np.float32], real: NDArray[np.bool_]) -> NDArray[np.float32]:
    """What an error of each clip's logits is measured by: float32 `[n, K]` and bool `[n]` → float32 `[n]`, in logits.

    It is how far the logits of the real clips spread about their mean (the root of the mean square over clips and classes): what
    all clips have in common says nothing about a clip, and a network that ignored its input would be off by just that. A clip
    that lies further from the mean, as black or white may, is measured by its own distance. Where the spread is small beside the
    logits themselves, a hundredth of the largest is the yardstick, of which the tolerances are about one rounding of the logits
    themselves.
    """
    values = logits.astype(np.float64)
    common = values[real if real.any() else slice(None)]
    away = np.sqrt(np.square(values - common.mean(0)).mean(1))
    spread = np.sqrt(np.square(common - common.mean(0)).mean())
    return np.maximum(np.maximum(away, spread), np.abs(common).max() / 100).astype(np.float32)


def adversarial(frames: int, size: int) -> NDArray[np.uint8]:
    """Black, white and noise: uint8 `[3, T, S, S, 3]`; where rounding and zero padding show."""
    shape = (frames, size, size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])


def real_clips(config: DataConfig, preprocess: Preprocess, count: int) -> NDArray[np.uint8]:
    """Clips spread evenly over the validation split, through the deploy preprocessing: uint8 `[n, T, S, S, 3]`."""
    catalogue = open_split(config, "val")
    for line in catalogue.notes:
        say(line)
    return clips.read(catalogue, clips.spread(catalogue, count), preprocess)[0]


def reference_run(model: VideoModel) -> Run:
    """The float32 network in torch, as a function of uint8 frames: what every artefact is held against."""
    import torch

    from dtkd_edge.models.base import fit_clip

    def run(frames: NDArray[np.uint8]) -> Logits:
        with torch.no_grad():
            logits = model(fit_clip(torch.from_numpy(frames), model.info))
        return {head: value.numpy() for head, value in logits.items()}

    return run


def make_golden(model: VideoModel, clips: NDArray[np.uint8]) -> Golden:
    frames = np.concatenate([clips, adversarial(model.info.frames, model.info.size)])
    run = reference_run(model)
    parts = [run(frames[i : i + 4]) for i in range(0, len(frames), 4)]
    logits = {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}
    return Golden.of(frames, np.arange(len(frames)) < len(clips), logits)


def same_type(manifest: Manifest, golden: Golden) -> bool:
    """Whether the stored clips have the shape that the graph takes."""
    clip = [manifest.model.frames, manifest.model.size, manifest.model.size, 3]
    return golden.frames.dtype == np.uint8 and list(golden.frames.shape[1:]) == clip
