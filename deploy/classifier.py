"""An exported artefact as a Python object: videos or frames in, labels with probabilities out. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.artifact import MANIFEST, Artifact
from dtkd_edge.console import say
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.errors import ArtifactError, NotHereError, UsageError
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.runs import find_artifacts
from dtkd_edge.video import read_input

if TYPE_CHECKING:
    from dtkd_edge.deploy.live import Live

MAIN_HEAD = "action"


@dataclass(frozen=True)
class Score:
    label: str
    score: float  # probability, 0 … 1


@dataclass(frozen=True)
class Prediction:
    """Labels by head, the likeliest first. The main head is `action` where there is one, else the first."""

    heads: dict[str, list[Score]]

    @property
    def main(self) -> str:
        return MAIN_HEAD if MAIN_HEAD in self.heads else next(iter(self.heads))

    def top(self, k: int = 5, head: str | None = None) -> list[Score]:
        return self.heads[head or self.main][:k]

    @property
    def label(self) -> str:
        return self.top(1)[0].label

    @property
    def score(self) -> float:
        return self.top(1)[0].score

    def to_json(self, top: int = 5) -> dict[str, Any]:
        heads = {
            head: [{"label": s.label, "score": round(s.score, 6)} for s in scores[:top]] for head, scores in self.heads.items()
        }
        return {"label": self.label, "score": round(self.score, 6), "heads": heads}


class Classifier:
    """An opened artefact. `with` or `close()` gives the runtime's memory back."""

    def __init__(self, artifact: Artifact, *, device: str = "auto", threads: int | None = None) -> None:
        self.artifact = artifact
        self.backend = open_backend(artifact, device=device, threads=threads)

    @property
    def preprocess(self) -> Preprocess:
        return self.artifact.manifest.preprocess

    @property
    def labels(self) -> dict[str, list[str]]:
        return self.artifact.manifest.labels

    def __str__(self) -> str:
        """The artefact, its model, and what runs it."""
        manifest, backend = self.artifact.manifest, self.backend
        unverified = "" if manifest.verify is None or manifest.verify.passed else " (NOT VERIFIED: its labels may be wrong)"
        late = f", labels lag by {manifest.delay} frames" if manifest.delay else ""
        return f"{self.artifact.folder}{unverified}: {manifest.model.name}, {backend.name} on {backend.device_name}{late}"

    def predict(self, video: str | Path | NDArray[np.uint8]) -> Prediction:
        """One clip out of a video file, or out of uint8 RGB frames `[T, H, W, 3]` of any size and number.

        Raises VideoError (the file does not decode) and UsageError (the frames have another shape or type).
        """
        probabilities = self.predict_frames(self.read(video))
        return self.prediction({head: p[0] for head, p in probabilities.items()})

    def read(self, video: str | Path | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The input of `predict_frames` for one video: uint8 RGB `[1, T, crop, crop, 3]`. Thread-safe."""
        if not isinstance(video, np.ndarray):
            return read_input(video, self.preprocess)
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
            raise UsageError(f"frames are {video.dtype} {list(video.shape)}", "pass uint8 RGB [T, H, W, 3]")
        picks = self.preprocess.sampling.indices(len(video))[0]
        return self.preprocess.frames(video[picks])[None]

    def predict_frames(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """uint8 RGB `[N, T, crop, crop, 3]` → head → probabilities `[N, K]`, rows summing to 1.

        A stream artefact sees the T frames one after the other, from a state of zeros; what it says after the last one counts.
        """
        return {head: softmax(values) for head, values in self.backend.run_clips(batch).items()}

    def predict_live(self, clip: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """The newest clip `[T, crop, crop, 3]` of one stream → head → probabilities `[K]`.

        A stream artefact takes T = 1, the next frame, and keeps its state.
        """
        logits = self.backend.run(clip[None] if self.artifact.manifest.mode == "clip" else clip)
        return {head: softmax(values[0]) for head, values in logits.items()}

    def prediction(self, probabilities: dict[str, NDArray[np.float32]]) -> Prediction:
        """Probabilities `[K]` per head → sorted labels."""
        heads = {}
        for head, values in probabilities.items():
            order = np.argsort(-values, kind="stable")
            heads[head] = [Score(self.labels[head][i], float(values[i])) for i in order]
        return Prediction(heads)

    def stream(self, source: str = "0", **options: Any) -> Iterator[Live]:
        """Live labels of a camera number, file, URL or `pattern`: one `Live` per inference, until the source ends.

        Who reads more slowly than labels come gets the newest, and misses none at which an event `began` or `ended`.

        The options are those of `dtkd_edge.deploy.live.Settings`, and width, height, fps, loop and fast of the source.
        """
        from dtkd_edge.deploy.stream import stream

        return stream(self, source, **options)

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis, safe for large logits."""
    wide = logits.astype(np.float64)
    exp = np.exp(wide - wide.max(-1, keepdims=True))
    return np.asarray(exp / exp.sum(-1, keepdims=True), np.float32)


def load(path: str | Path, *, device: str = "auto", threads: int | None = None) -> Classifier:
    """Open an artefact folder, or the newest artefact of a run folder that this machine can run."""
    return load_newest([Path(path)], device=device, threads=threads)


def load_newest(given: list[Path], *, device: str = "auto", threads: int | None = None) -> Classifier:
    """The artefact that was named; for a run (or nothing: the newest run) its newest artefact that runs here.

    A run may hold engines for other machines: those are passed over, and only when none is left is the newest one's error raised.
    """
    folders = find_artifacts(given)
    named = len(given) == 1 and folders == given
    failure: Exception | None = None
    for folder in reversed(folders):
        try:
            return Classifier(Artifact.open(folder), device=device, threads=threads)
        except (NotHereError, ArtifactError) as error:
            if named:
                raise
            say(f"passed over: {error.message}")
            failure = failure or error
    raise failure or ArtifactError("no artefact", "make one with: dtkd-edge export")


def is_artifact_or_run(path: Path) -> bool:
    return (path / MANIFEST).is_file() or (path / "recipe.yaml").is_file()
