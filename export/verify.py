"""Hold an artefact against the float32 network's answers (`golden.py`), time it, and say both in a line. No torch."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.artifact import Artifact, VerifyPart
from dtkd_edge.deploy.backends import Backend, open_backend
from dtkd_edge.export import accuracy
from dtkd_edge.export.golden import Golden, Logits, Run

# Largest allowed error, in units of the clip's yardstick (`golden.scales`), root mean square over clips and classes. Half
# precision rounds each of some 50 layers to 2^-11, bfloat16 to 2^-8. int8 has no tolerance on values when it is exported: it is
# accepted or refused by its accuracy.
TOLERANCE = {"fp32": 5e-4, "fp16": 6e-2, "bf16": 5e-1, "int8": float("inf")}
ONE_CLIP = 4.0  # times the tolerance: the largest error of any one clip
# Smallest share of real clips whose top-1 label stays, of those on which float32 prefers it clearly: by twice the tolerance.
AGREEMENT = {"fp32": 1.0, "fp16": 0.995, "bf16": 0.95, "int8": 0.0}
# Elsewhere the error may be so many times what it was at export: kernels of other processors round otherwise, or saturate.
DRIFT = 2.0

SECONDS = 1.5  # that each latency of the verdict is measured for

# The error of an output that is missing, of another shape or not finite (JSON has no infinity).
UNUSABLE = 1e30


def one_call(backend: Backend) -> Run:
    """What one new prediction costs: a clip, or a stream's next frame."""
    if backend.artifact.manifest.mode == "clip":
        return backend.run
    return lambda frames: backend.run(np.ascontiguousarray(frames[:, -1]))


@dataclass(frozen=True)
class Errors:
    """Of the head that is off most, in units of the yardstick. error: root mean square over the clips; worst: of any clip."""

    error: float
    worst: float

    @classmethod
    def between(cls, golden: Golden, got: Logits) -> Errors:
        clips = []
        for head, scale in golden.scales.items():
            off = np.sqrt(np.square(got[head].astype(np.float64) - golden.logits[head]).mean(1))
            clips.append(off / np.maximum(scale, np.finfo(np.float32).tiny))
        return cls(
            max(float(np.sqrt(np.square(each).mean())) for each in clips),
            max(float(each.max()) for each in clips),
        )


def flips(golden: Golden, got: Logits, tolerance: float) -> tuple[int, int, int]:
    """(real clips × heads, those whose label changed, those of them whose label float32 preferred by twice the tolerance)."""
    count = changed = clear = 0
    for head, reference in golden.logits.items():
        rows = np.flatnonzero(golden.real)
        label, now = reference[rows].argmax(1), got[head][rows].argmax(1)
        margin = reference[rows, label] - reference[rows, now]
        count += len(rows)
        changed += int((label != now).sum())
        clear += int(((label != now) & (margin > 2 * tolerance * golden.scales[head][rows])).sum())
    return count, changed, clear


def compare(
    backend: Backend, golden: Golden, precision: str, *, reference: str = "torch fp32", allowed: float | None = None
) -> VerifyPart:
    """Run the golden clips and measure. The part says `passed=False` for wrong names, shapes or types too.

    allowed: largest error, where it is not the precision's TOLERANCE. The part's `tolerance` is what the stored clips may be off
    by elsewhere: that, or DRIFT times what they are off by here if this passes.
    """
    wanted = {output.head: output.classes for output in backend.artifact.manifest.outputs}
    got = backend.run_clips(golden.frames)
    tolerance = min(TOLERANCE[precision] if allowed is None else allowed, UNUSABLE)
    part = VerifyPart(
        passed=False, reference=reference, clips=int(golden.real.sum()), max_abs=UNUSABLE, mean_abs=UNUSABLE, error=UNUSABLE,
        worst=UNUSABLE, top1_agreement=0.0, tolerance=tolerance if tolerance < UNUSABLE else 0.0, speedup=None,
    )  # fmt: skip
    whole = {head: value.shape == (len(golden.frames), wanted.get(head)) for head, value in got.items()}
    if set(got) != set(wanted) or not all(whole.values()) or not all(np.isfinite(v).all() for v in got.values()):
        return part
    absolute = np.concatenate([np.abs(got[head] - golden.logits[head]).ravel() for head in wanted])
    part.max_abs, part.mean_abs = float(absolute.max()), float(absolute.mean())
    seen = Errors.between(golden, got)
    part.error, part.worst = seen.error, seen.worst
    count, changed, clear = flips(golden, got, tolerance)
    part.top1_agreement = 1 - changed / count if count else 1.0
    # In a lowered precision one clip may flip, however few there are.
    may = max(int((1 - AGREEMENT[precision]) * count), 0 if precision == "fp32" else 1)
    part.passed = seen.error <= tolerance and seen.worst <= ONE_CLIP * tolerance and clear <= may
    if allowed is None and (part.passed or precision == "int8"):
        kept = golden.stored()
        there = Errors.between(golden.pick(kept), {head: value[kept] for head, value in got.items()})
        part.tolerance = max(part.tolerance, DRIFT * there.error, DRIFT * there.worst / ONE_CLIP)
    return part


def add_file(part: VerifyPart, artifact: Artifact, golden: Golden) -> None:
    """To the part of a bf16 artefact, what its file says of the stored clips when it is computed in float32.

    OpenVINO's bf16 is the float32 file and a word to the runtime. What bfloat16 is off by would hide a wrong weight; this does
    not.
    """
    manifest = artifact.manifest
    if manifest.target != "openvino" or manifest.precision != "bf16":
        return
    exact = Artifact(artifact.folder, manifest.model_copy(update={"precision": "fp32"}))
    with open_backend(exact, device="cpu") as backend:
        same = compare(backend, golden.pick(golden.stored()), "fp32")
    part.in_fp32, part.passed = same.error, part.passed and same.passed


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


def off_by(part: VerifyPart) -> str:
    """Why it is not verified, as a clause."""
    if part.max_abs >= UNUSABLE:
        return "an output is missing, of another shape, or not finite"
    if part.in_fp32 is not None and part.in_fp32 > TOLERANCE["fp32"]:
        return f"its file computed in fp32 is off by {part.in_fp32:.2g} of the logits' spread, {TOLERANCE['fp32']:g} is allowed"
    if part.error is not None and part.error > part.tolerance:
        return f"off by {part.error:.2g} of the logits' spread, {part.tolerance:.2g} is allowed"
    if part.worst is not None and part.worst > ONE_CLIP * part.tolerance:
        return f"one clip is off by {part.worst:.2g} of the logits' spread, {ONE_CLIP * part.tolerance:.2g} is allowed"
    return f"only {part.top1_agreement:.1%} of the top-1 labels stay"


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
        f"error {part.error:.1e} of the logits' spread (allowed {part.tolerance:.1g})",
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
