"""Hold an artefact against the float32 network: on real clips other than the traced one, and on black, white and noise.

The reference's logits are stored in the artefact beside some of the clips (`golden.npz`), so that the same check runs later on
any machine, without torch. No torch at module level.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.artifact import Artifact, VerifyPart
from dtkd_edge.data.catalogue import open_split
from dtkd_edge.deploy.backends.base import Backend
from dtkd_edge.errors import ArtifactError
from dtkd_edge.export import accuracy, clips
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.recipe import DataConfig

if TYPE_CHECKING:
    from dtkd_edge.models.base import VideoModel

GOLDEN = "golden.npz"
GOLDEN_CLIPS = 4  # real clips that travel with the artefact
CLIPS = 64  # real clips that are compared when exporting

# Largest allowed error of a logit, relative to the largest reference logit (at least 1), and the smallest share of real clips
# whose top-1 label stays. Half precision rounds each of some 50 layers to 2^-11, bfloat16 to 2^-8. int8 has no tolerance on
# values when it is exported: it is accepted or refused by its accuracy. The error that it had then, times DRIFT, is what it may
# have elsewhere: integer kernels of other processors round otherwise, or saturate.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-1, "int8": float("inf")}
AGREEMENT = {"fp32": 1.0, "fp16": 0.995, "bf16": 0.95, "int8": 0.0}

DRIFT = 2.0
SECONDS = 1.5  # that each latency of the verdict is measured for

# The error of an output that is missing, of another shape or not finite (JSON has no infinity).
UNUSABLE = 1e30

Run = Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]


@dataclass
class Golden:
    """Clips and what the float32 network says of them.

    frames: uint8 `[n, T, H, W, 3]`; real: bool `[n]`, False for the adversarial ones; logits: head → float32 `[n, K]`
    """

    frames: NDArray[np.uint8]
    real: NDArray[np.bool_]
    logits: dict[str, NDArray[np.float32]]

    def save(self, path: Path, clips: int = GOLDEN_CLIPS) -> None:
        """The first `clips` real ones and all adversarial ones."""
        keep = np.flatnonzero(self.real & (np.cumsum(self.real) <= clips) | ~self.real)
        arrays = {f"logits.{head}": value[keep] for head, value in self.logits.items()}
        np.savez_compressed(path, frames=self.frames[keep], real=self.real[keep], **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, artifact: Artifact) -> Golden:
        path = artifact.folder / GOLDEN
        if GOLDEN not in artifact.manifest.files:
            raise ArtifactError(f"{artifact.folder}: no {GOLDEN} to verify against", "export the run again")
        try:
            with np.load(path, allow_pickle=False) as stored:
                logits = {head: stored[f"logits.{head}"] for head in artifact.manifest.labels}
                return cls(stored["frames"], stored["real"], logits)
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{path}: not readable: {error}", "export the run again") from error


def adversarial(frames: int, size: int) -> NDArray[np.uint8]:
    """Black, white and noise: uint8 `[3, T, S, S, 3]`; where rounding and zero padding show."""
    shape = (frames, size, size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.stack([np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), noise])


def real_clips(config: DataConfig, preprocess: Preprocess, count: int) -> NDArray[np.uint8]:
    """Clips spread evenly over the validation split, through the deploy preprocessing: uint8 `[n, T, S, S, 3]`."""
    catalogue = open_split(config, "val")
    return clips.read(catalogue, clips.spread(catalogue, count), preprocess)[0]


def reference_run(model: VideoModel) -> Run:
    """The float32 network in torch, as a function of uint8 frames: what every artefact is held against."""
    import torch

    from dtkd_edge.models.base import fit_clip

    def run(frames: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        with torch.no_grad():
            logits = model(fit_clip(torch.from_numpy(frames), model.info))
        return {head: value.numpy() for head, value in logits.items()}

    return run


def make_golden(model: VideoModel, clips: NDArray[np.uint8]) -> Golden:
    frames = np.concatenate([clips, adversarial(model.info.frames, model.info.size)])
    run = reference_run(model)
    parts = [run(frames[i : i + 4]) for i in range(0, len(frames), 4)]
    logits = {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}
    return Golden(frames, np.arange(len(frames)) < len(clips), logits)


def one_call(backend: Backend) -> Run:
    """What one new prediction costs: a clip, or a stream's next frame."""
    if backend.artifact.manifest.mode == "clip":
        return backend.run
    return lambda frames: backend.run(np.ascontiguousarray(frames[:, -1]))


def compare(
    backend: Backend, golden: Golden, precision: str, *, reference: str = "torch fp32", allowed: float | None = None
) -> VerifyPart:
    """Run the golden clips and measure. The part says `passed=False` for wrong names, shapes or types too.

    allowed: largest error of a logit where it is not the precision's TOLERANCE.
    """
    wanted = {output.head: output.classes for output in backend.artifact.manifest.outputs}
    got = backend.run_clips(golden.frames)
    scale = max([1.0, *(float(np.abs(value).max()) for value in golden.logits.values())])
    tolerance = TOLERANCE[precision] * scale if allowed is None else allowed
    clips = int(golden.real.sum())
    part = VerifyPart(
        passed=False, reference=reference, clips=clips, max_abs=UNUSABLE, mean_abs=UNUSABLE, top1_agreement=0.0,
        tolerance=tolerance if np.isfinite(tolerance) else -1.0, speedup=None,
    )  # fmt: skip
    whole = {head: value.shape == (len(golden.frames), wanted.get(head)) for head, value in got.items()}
    if set(got) != set(wanted) or not all(whole.values()) or not all(np.isfinite(v).all() for v in got.values()):
        return part
    errors = np.concatenate([np.abs(got[head] - golden.logits[head]).ravel() for head in wanted])
    same = np.stack([(got[h].argmax(1) == golden.logits[h].argmax(1))[golden.real] for h in wanted])
    part.max_abs, part.mean_abs = float(errors.max()), float(errors.mean())
    part.top1_agreement = float(same.mean()) if clips else 1.0
    # In a lowered precision one clip at the border between two labels may flip, however few clips there are.
    flips = max(int((1 - AGREEMENT[precision]) * same.size), 0 if precision == "fp32" else 1)
    part.passed = part.max_abs <= tolerance and int((~same).sum()) <= flips
    return part


def latency(runs: list[Run], frames: NDArray[np.uint8]) -> list[float]:
    """Median milliseconds of each. Short blocks in turns, so that a busy machine slows all of them alike; a block's first call,
    which pays for cold caches and for the other's threads that still spin, does not count."""
    for run in runs:
        run(frames)
    times: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + SECONDS * len(runs)
    while len(times[0]) < 3 or (time.perf_counter() < end and len(times[0]) < 60):
        for run, taken in zip(runs, times, strict=True):
            run(frames)
            for _ in range(3):
                start = time.perf_counter()
                run(frames)
                taken.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(taken) for taken in times]


def verdict(artifact: Artifact, part: VerifyPart, ms: dict[str, float] | None = None) -> str:
    """One line: size, error, agreement, and whether it is faster. `ms`: latencies by name, the artefact's own as 'here'."""
    manifest = artifact.manifest
    models = [
        n for n in manifest.files if n.startswith("model.") and not (n == "model.onnx" and "model.engine" in manifest.files)
    ]
    size = sum((artifact.folder / name).stat().st_size for name in models) / 1e6
    words = [
        f"{manifest.name}: {'verified' if part.passed else 'NOT VERIFIED'}",
        f"{size:.1f} MB",
        f"max error {part.max_abs:.1e}" + (f" (allowed {part.tolerance:.1e})" if part.tolerance >= 0 else ""),
        f"top-1 agrees on {part.top1_agreement:.1%} of {part.clips} clips",
    ]
    if manifest.accuracy:
        words.append(accuracy.words(manifest.accuracy))
    if manifest.quantization:
        made = manifest.quantization
        words.append(f"int8 in {made.layers - len(made.kept)} of {made.layers} layers, the rest in {made.rest}")
        if made.kept:
            words.append(f"left out of int8: {', '.join(made.kept)}")
    if ms:
        here = ms["here"]
        words.append(f"{here:.2f} ms {'a frame ' if manifest.mode == 'stream' else ''}on one thread")
        for name, other in ms.items():
            if name != "here":
                ratio = other / here
                words.append(f"{ratio:.1f}× faster than {name}" if ratio >= 1 else f"{1 / ratio:.1f}× SLOWER than {name}")
    return ", ".join(words)


def same_type(manifest: Any, golden: Golden) -> bool:
    """Whether the stored clips have the shape that the graph takes."""
    clip = [manifest.model.frames, manifest.model.size, manifest.model.size, 3]
    return golden.frames.dtype == np.uint8 and list(golden.frames.shape[1:]) == clip
