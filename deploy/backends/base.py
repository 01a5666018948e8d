"""What every runtime does for the rest: uint8 frames in, logits per head out, and a word about where it ran. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.artifact import Artifact
from dtkd_edge.errors import UsageError


class Backend(ABC):
    """An opened artefact. Use it from one thread at a time.

    name                 onnxruntime, openvino or tensorrt
    device               "cpu", "gpu", "cuda:0" …
    device_name          the device's full name, for records
    effective_precision  what the arithmetic really runs in, which may differ from what the manifest asks for
    hints                what it can be set up for: `hint` of open_backend
    at_once              batches that it computes side by side
    properties           the runtime's own settings that move its speed, as it reports them
    """

    name: str
    device: str
    device_name: str
    effective_precision: str
    hints: tuple[str, ...] = ()
    at_once: int = 1

    @property
    def properties(self) -> dict[str, str]:
        return {}

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        manifest = artifact.manifest
        self._outputs = {part.name: part.head for part in manifest.outputs}
        self._shape = tuple(manifest.input.shape)
        self.reset()

    def run(self, frames: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """uint8 RGB `[N, T, H, W, 3]` (stream artefact: `[N, H, W, 3]`) → head → float32 logits `[N, K]`.

        Returns when the result is on the host. A graph with a static batch is run as often as N needs; the last part is
        filled up with copies whose results are dropped. UsageError for frames of another shape or type, and for more frames
        than a stream artefact has streams.
        """
        self._check(frames)
        batch = self._shape[0]
        if batch == -1:
            batch = -(-len(frames) // self.at_once)  # shared out to what runs side by side
        if self.artifact.manifest.mode == "stream" and len(frames) > batch:
            raise UsageError(f"this stream artefact takes {batch} frames at once, one per stream, got {len(frames)}")
        parts = [frames[start : start + batch] for start in range(0, len(frames), batch)]
        if self.at_once > 1 and len(parts) > 1:
            full = [self._filled(part, batch) for part in parts]
            results = self._infer_side_by_side([{"frames": part} for part in full])
            return _joined([_cut(self._heads(result), len(part)) for result, part in zip(results, parts, strict=True)])
        return _joined([self._run_batch(part, batch) for part in parts])

    def run_clips(self, clips: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Whole clips, uint8 RGB `[N, T, H, W, 3]` → head → float32 logits `[N, K]`.

        A stream artefact sees the frames of each in turn, from an empty state; what it says after the last one counts. Where a
        label lags behind (`StreamPart.delay`), the last frame stands still until it has come.
        """
        if self.artifact.manifest.mode == "clip":
            return self.run(clips)
        parts = []
        for start in range(0, len(clips), self._shape[0]):
            self.reset()
            frames = list(clips[start : start + self._shape[0]].swapaxes(0, 1))
            for frame in (*frames, *frames[-1:] * self.artifact.manifest.delay):
                out = self.run(frame)
            parts.append(out)
        self.reset()
        return _joined(parts)

    def _run_batch(self, frames: NDArray[np.uint8], batch: int) -> dict[str, NDArray[np.float32]]:
        return _cut(self._heads(self._infer({"frames": self._filled(frames, batch), **self._states})), len(frames))

    @staticmethod
    def _filled(frames: NDArray[np.uint8], batch: int) -> NDArray[np.uint8]:
        missing = batch - len(frames)
        return np.ascontiguousarray(np.concatenate([frames, np.repeat(frames[-1:], missing, 0)]) if missing else frames)

    def reset(self) -> None:
        """Forget the past of a stream artefact: all of its states start from zero again."""
        self._states: dict[str, NDArray] = {
            state.name: np.zeros(state.shape, state.dtype) for state in self.artifact.manifest.input.states
        }

    @property
    def states(self) -> dict[str, NDArray]:
        """What a stream artefact remembers, by the names of the graph's inputs; empty for a clip artefact."""
        return dict(self._states)

    @abstractmethod
    def _infer(self, inputs: dict[str, NDArray]) -> dict[str, NDArray]:
        """Every output by its name in the graph, as arrays that the next call does not overwrite."""

    def _infer_side_by_side(self, inputs: list[dict[str, NDArray]]) -> list[dict[str, NDArray]]:
        """As `_infer` of each, in their order; a clip artefact's alone."""
        return [self._infer(each) for each in inputs]

    @abstractmethod
    def close(self) -> None:
        """Give back what the runtime holds; calling it twice is harmless."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _heads(self, outputs: dict[str, NDArray]) -> dict[str, NDArray[np.float32]]:
        for name in self._states:  # a stream graph gives the state `name` back as `name_next`
            self._states[name] = outputs[f"{name}_next"]
        return {head: np.asarray(outputs[name], np.float32) for name, head in self._outputs.items()}

    def _check(self, frames: NDArray[np.uint8]) -> None:
        want = self._shape[1:]
        if frames.dtype != np.uint8:
            raise UsageError(f"frames are {frames.dtype}, the model takes uint8 RGB", "pass decoded frames as they are")
        if frames.ndim != len(want) + 1 or frames.shape[1:] != want or len(frames) < 1:
            shape = ", ".join(str(n) for n in want)
            raise UsageError(f"frames have shape {list(frames.shape)}, the model takes [N, {shape}]", "see Preprocess.frames")


def _cut(out: dict[str, NDArray[np.float32]], count: int) -> dict[str, NDArray[np.float32]]:
    return {head: logits[:count] for head, logits in out.items()}


def _joined(parts: list[dict[str, NDArray[np.float32]]]) -> dict[str, NDArray[np.float32]]:
    return parts[0] if len(parts) == 1 else {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}
