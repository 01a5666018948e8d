"""Hold an artefact against the float32 network's answers (`golden.py`), time it, and say both in a line. No torch."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.artifact import Artifact, VerifyPart
from dtkd_edge.console import counted
from dtkd_edge.deploy.backends import Backend, open_backend
from dtkd_edge.export import accuracy
from dtkd_edge.export.golden import Golden, Logits, Run

# Largest allowed error, in units of the clip's yardstick (`golden.scales`), root mean square over clips and classes. Half
# precision rounds each of some 50 layers to 2^-11, bfloat16 to 2^-8. int8 has no tolerance on values when it is exported: it is
# accepted or refused by its accuracy.
TOLERANCE = {"fp32": 5e-4, "fp16": 6e-2, "bf16": 3e-1, "int8": float("inf")}
# Times the tolerance: the largest error of any one clip, of any one class (root mean square over clips), of any one logit. In the
# mean over 400 classes a dead one is a twentieth of itself.
ONE_CLIP, ONE_CLASS, ONE_LOGIT = 4.0, 2.0, 8.0
# Smallest share of real clips whose top-1 label stays, of those on which float32 prefers it clearly: by twice the tolerance.
AGREEMENT = {"fp32": 1.0, "fp16": 0.995, "bf16": 0.95, "int8": 0.0}
# The same of all real clips; one more may change, however few there are. In fp32 what changes is a tie or clear.
ALL_AGREEMENT = {"fp32": 0.0, "fp16": 0.85, "bf16": 0.85, "int8": 0.0}
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
    """Of the head that is off most, in units of the yardstick. error: root mean square over clips and classes; worst: over the
    classes of the worst clip; of_class: over the clips of the worst class; logit: of any one."""

    error: float
    worst: float
    of_class: float
    logit: float

    @classmethod
    def between(cls, golden: Golden, got: Logits) -> Errors:
        heads = []
        for head, scale in golden.scales.items():
            off = got[head].astype(np.float64) - golden.logits[head]
            square = np.square(off / np.maximum(scale, np.finfo(np.float32).tiny)[:, None])
            heads.append(np.sqrt([square.mean(), square.mean(1).max(), square.mean(0).max(), square.max()]))
        return cls(*np.max(heads, 0).tolist())

    @property
    def needed(self) -> float:
        """The least tolerance that allows them."""
        return max(self.error, self.worst / ONE_CLIP, self.of_class / ONE_CLASS, self.logit / ONE_LOGIT)

    def beyond(self, tolerance: float) -> str | None:
        """Which of them the tolerance does not allow, as a clause."""
        for what, value, times in (
            ("", self.error, 1.0),
            ("one clip is ", self.worst, ONE_CLIP),
            ("one class is ", self.of_class, ONE_CLASS),
            ("one logit is ", self.logit, ONE_LOGIT),
        ):
            if value > times * tolerance:
                return f"{what}off by {value:.2g} of the logits' spread, {times * tolerance:.2g} is allowed"
        return None


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
        reason="an output is missing, of another shape, or not finite",
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
    part.reason = seen.beyond(tolerance) or _too_many(precision, count, changed, clear)
    part.passed = part.reason is None
    if allowed is None and (part.passed or precision == "int8"):
        kept = golden.stored()
        there = Errors.between(golden.pick(kept), {head: value[kept] for head, value in got.items()})
        part.tolerance = max(part.tolerance, DRIFT * there.needed)
    return part


def _too_many(precision: str, count: int, changed: int, clear: int) -> str | None:
    """Whether more of `count` labels change than may, as a clause."""
    # In a lowered precision one clip may flip, however few there are.
    may = max(int((1 - AGREEMENT[precision]) * count), 0 if precision == "fp32" else 1)
    if clear > may:
        return f"{clear} of {count} top-1 labels change that fp32 clearly prefers, {may} may"
    may = int((1 - ALL_AGREEMENT[precision]) * count) + 1
    return f"{changed} of {count} top-1 labels change, {may} may" if changed > may else None


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
    part.in_fp32 = same.error
    if not same.passed:
        part.passed, part.reason = False, f"its file computed in fp32: {same.reason}"


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
        f"error {part.error:.1e} of the logits' spread (allowed {part.tolerance:.1g})",
        f"top-1 agrees on {part.top1_agreement:.1%} of {counted(part.clips, 'clip')}",
    ]
    if manifest.accuracy:
        words.append(accuracy.words(manifest.accuracy))
    if manifest.quantization:
        made = manifest.quantization
        int8 = made.layers - len(made.kept) - len(made.excluded)
        words.append(f"int8 in {int8} of {made.layers} layers, the rest in {made.rest}")
        if made.excluded:
            words.append(f"{len(made.excluded)} depthwise 3-D convolutions have no faster int8")
        if made.kept:
            words.append(f"left out of int8: {', '.join(made.kept)}")
    if ms:
        here = ms["here"]
        where = f"on {manifest.engine_key.gpu}" if manifest.engine_key else "on one thread"
        words.append(f"{here:.2f} ms {'a frame ' if manifest.mode == 'stream' else ''}{where}")
        for name, other in ms.items():
            if name != "here":
                ratio = other / here
                words.append(f"{ratio:.1f}× faster than {name}" if ratio >= 1 else f"{1 / ratio:.1f}× SLOWER than {name}")
    return ", ".join(words)
