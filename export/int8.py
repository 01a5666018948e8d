"""int8 that holds its accuracy gate: calibrate, quantise, measure, and keep out of int8 what costs too much."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dtkd_edge.artifact import AccuracyPart, Manifest, QuantizationPart, unfinished
from dtkd_edge.console import say
from dtkd_edge.deploy.backends import Backend, open_backend
from dtkd_edge.deploy.backends.openvino import OpenVinoBackend
from dtkd_edge.export import clips, graph, nncf, openvino, qdq, verify
from dtkd_edge.export.accuracy import Gate, right
from dtkd_edge.export.clips import Calibration

if TYPE_CHECKING:
    import onnx


@dataclass
class Int8:
    """What every way of quantising needs. `reference`: the same graph in float32, opened; `manifest`: filled in by the ways."""

    calibration: Calibration
    gate: Gate
    reference: Backend
    manifest: Manifest

    def onnx(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """The Q/DQ graph. ONNX Runtime measures it, whatever it is for."""
        say(f"calibrating on {len(self.calibration.frames)} training clips")
        quantizer = qdq.Quantizer(proto, clips.feeds(self.reference, self.calibration.frames))

        def measure(candidate: onnx.ModelProto) -> AccuracyPart:
            with tempfile.TemporaryDirectory(prefix="dtkd-edge-") as scratch:
                graph.save_onnx(candidate, Path(scratch) / "model.onnx")
                return self._measure(Path(scratch), "onnx")

        proto, part, kept = qdq.hold_gate(quantizer, measure)
        import onnxruntime

        method = f"onnxruntime {onnxruntime.__version__}: Q/DQ, symmetric, smallest and largest value"
        self._record(method, part, layers=len(quantizer.layers), kept=kept, rest="fp32")
        return proto

    def openvino(self, model: Any) -> Any:
        """The quantised `openvino.Model`; what is left in float runs in the fastest precision that holds the gate."""
        say(f"calibrating on {len(self.calibration.frames)} training clips")
        feeds = list(clips.feeds(self.reference, self.calibration.frames))
        quantized = nncf.quantize(model, feeds)
        part, rest = self._choose_rest(quantized)
        if not part.passed:
            say("too much accuracy is lost: looking for the layers that cost it")
            finer = nncf.quantize_within(model, feeds, len(self.gate.frames), self._score, self.gate.max_drop)
            finer_part, finer_rest = self._choose_rest(finer)
            if finer_part.drop < part.drop:
                quantized, part, rest = finer, finer_part, finer_rest
        layers = nncf.layers(quantized)
        excluded = nncf.depthwise_3d(model)
        kept = [name for name, is_int8 in layers.items() if not is_int8 and name not in excluded]
        method = f"nncf {nncf.version()}: post-training, mixed"
        self._record(method, part, layers=len(layers), kept=kept, rest=rest, excluded=excluded)
        return quantized

    def _record(
        self, method: str, part: AccuracyPart | None, *, layers: int, kept: list[str], rest: str, excluded: Sequence[str] = ()
    ) -> None:
        self.manifest.accuracy = part
        self.manifest.quantization = QuantizationPart(
            method=method, clips=len(self.calibration.frames), seed=self.calibration.seed, clips_sha256=self.calibration.sha256,
            layers=layers, kept=kept, excluded=list(excluded), rest=rest,
        )  # fmt: skip

    def _measure(self, folder: Path, target: str) -> AccuracyPart:
        with open_backend(unfinished(folder, self.manifest, target=target), device="cpu") as backend:
            return self.gate.measure(backend)

    def _choose_rest(self, model: Any) -> tuple[AccuracyPart, str]:
        """float32 or bfloat16 around int8: the faster one of those that hold the gate; none: the one that loses least."""
        rests = ["fp32", *(["bf16"] if openvino.has_bf16() else [])]
        with tempfile.TemporaryDirectory(prefix="dtkd-edge-") as scratch:
            openvino.write_ir(model.clone(), Path(scratch), precision="int8", entries={})
            parts: dict[str, AccuracyPart] = {}
            for rest in rests:
                self._record("", None, layers=0, kept=[], rest=rest)
                parts[rest] = self._measure(Path(scratch), "openvino")
            good = [rest for rest in rests if parts[rest].passed]
            if len(good) < 2:
                best = good[0] if good else min(rests, key=lambda rest: parts[rest].drop)
                return parts[best], best
            opened = []
            for rest in good:
                self._record("", None, layers=0, kept=[], rest=rest)
                opened.append(open_backend(unfinished(Path(scratch), self.manifest), device="cpu", threads=1))
            batch = max(self.manifest.input.shape[0], 1)
            frames = self.gate.frames[np.arange(batch) % len(self.gate.frames)]
            times = verify.latency([verify.one_call(backend) for backend in opened], frames)
            for backend in opened:
                backend.close()
        best = good[int(np.argmin(times))]
        return parts[best], best

    def _score(self, compiled: Any, numbers: list[int]) -> tuple[float, list[float]]:
        """1 less what the head that loses most loses beside float32, as a share of its clips (NNCF divides by float32's own
        score: so that is about 1 and never 0); and the probability that each clip's labels get, in the mean over heads: finer
        than right or wrong, to rank layers by."""
        with _Compiled(unfinished(Path(), self.manifest), compiled) as backend:
            got = backend.run_clips(self.gate.frames[numbers])
        won, each = [], []
        for head, all_labels in self.gate.labels.items():
            labels = all_labels[numbers]
            known = labels >= 0
            logits = got[head].astype(np.float64)
            odds = np.exp(logits - logits.max(1, keepdims=True))
            odds /= odds.sum(1, keepdims=True)
            each.append(np.where(known, odds[np.arange(len(labels)), labels], 0.0))
            if known.any():
                before, after = (right(z, labels)[known].astype(float) for z in (self.gate.reference[head][numbers], logits))
                won.append(float((after - before).mean()))
        return 1 + min(won, default=0.0), np.mean(each, 0).tolist()


class _Compiled(OpenVinoBackend):
    """A model that somebody else has compiled."""

    def __init__(self, artifact: Any, compiled: Any) -> None:
        Backend.__init__(self, artifact)
        self._take(compiled)
