"""An artefact's own stored clips (`golden.npz`): verify by them anywhere, without torch; what a failed verification says."""

from __future__ import annotations

import numpy as np

from dtkd_edge.artifact import Artifact, VerifyPart
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.errors import ArtifactError, VerificationError
from dtkd_edge.export import verify
from dtkd_edge.export.accuracy import named
from dtkd_edge.export.golden import Golden, same_type


def stored_clips(artifact: Artifact) -> Golden:
    """The clips and float32 answers of golden.npz; ArtifactError where they are not of this graph."""
    golden = Golden.load(artifact)
    if not same_type(artifact.manifest, golden):
        raise ArtifactError(f"{artifact.folder}: the stored clips do not fit the graph", "export the run again")
    return golden


def verify_stored(artifact: Artifact, golden: Golden) -> VerifyPart:
    """Against the clips of golden.npz, on the artefact's own device."""
    if artifact.manifest.target == "tensorrt" and "model.engine" not in artifact.manifest.files:
        artifact = Artifact(artifact.folder, artifact.manifest.model_copy(update={"target": "onnx"}))
    manifest = artifact.manifest
    # What was accepted when it was exported, with some room for other kernels; of int8, too, whose accuracy was the judge.
    allowed = manifest.verify.tolerance if manifest.verify else None
    with open_backend(artifact) as backend:
        part = verify.compare(backend, golden, manifest.precision, reference="torch fp32, stored clips", allowed=allowed)
    verify.add_file(part, artifact, golden)
    return part


def latency(artifact: Artifact, golden: Golden) -> dict[str, float]:
    """The artefact's own median milliseconds as `verify.verdict` takes them: an engine's on its device, others on one thread, as
    at export. Nothing of a graph whose engine is still to be built."""
    manifest = artifact.manifest
    is_engine = "model.engine" in manifest.files
    if manifest.target == "tensorrt" and not is_engine:
        return {}
    frames = golden.frames[np.arange(max(manifest.input.shape[0], 1)) % len(golden.frames)]
    with open_backend(artifact) if is_engine else open_backend(artifact, device="cpu", threads=1) as backend:
        return {"here": verify.latency([verify.one_call(backend)], frames)[0]}


def refuse(artifact: Artifact, part: VerifyPart, hint: str = "the artefact is kept and marked; use a higher --precision") -> None:
    """VerificationError where `part` did not pass, with the reason."""
    if part.passed:
        return
    lost, made = artifact.manifest.accuracy, artifact.manifest.quantization
    if lost and not lost.passed:
        even = f", even with {len(made.kept)} of {made.layers} layers left out of int8" if made and made.kept else ""
        raise VerificationError(
            f"{artifact.folder}: {named(lost)}top-1 drops by {lost.drop:.1f} ± {lost.stderr:.1f} points on {lost.clips} clips, "
            f"{lost.max_drop:g} are allowed{even}",
            "use a float --precision, or allow more with --max-drop; the artefact is kept and marked",
        )
    raise VerificationError(f"{artifact.folder}: not verified: {part.reason}", hint)
