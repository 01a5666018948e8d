"""int8 as Q/DQ pairs in the ONNX graph: symmetric, zero point 0, weights per channel; one graph for ONNX Runtime and TensorRT.

TensorRT computes int8 where the graph says so and nowhere else; ONNX Runtime fuses the pairs into its integer kernels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.artifact import AccuracyPart
from dtkd_edge.errors import DtkdEdgeError
from dtkd_edge.export.golden import scales
from dtkd_edge.export.graph import quiet

if TYPE_CHECKING:
    import onnx

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Between two layers these pass int8 on, so that no tensor goes to float and back on the way.
BETWEEN = ("Add", "Concat", "Slice", "Reshape", "Transpose", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool")
RANKING_CLIPS = 16

Feed = dict[str, NDArray]


class Quantizer:
    """One calibrated graph, quantised as often as needed with other layers left out.

    proto: float32 with inferred types; feeds: inputs of the graph, a dict each. `layers`: names of what may be quantised.
    """

    def __init__(self, proto: onnx.ModelProto, feeds: Iterable[Feed]) -> None:
        self.proto = proto
        self.layers = [node.name for node in proto.graph.node if node.op_type in LAYERS]
        if not self.layers:
            raise DtkdEdgeError("--precision int8: the graph has no convolution or matrix product", "use a float --precision")
        self._front = _in_front(proto)
        self._few: list[Feed] = []
        self._ranges = self._calibrate(feeds)

    def _calibrate(self, feeds: Iterable[Feed]) -> Any:
        """Smallest and largest value of every activation over all feeds. Percentiles would need every tensor in memory, and a
        moving average forgets the rare clip; both were no better."""
        from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

        few = self._few

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.left = iter(feeds)

            def get_next(self) -> Feed | None:
                feed = next(self.left, None)
                if feed is not None and len(few) < RANKING_CLIPS:
                    few.append(feed)
                return feed

        with tempfile.TemporaryDirectory(prefix="dtkd-edge-") as scratch, quiet():
            import onnx

            source = Path(scratch) / "model.onnx"
            onnx.save(self.proto, str(source))
            calibrator = create_calibrator(
                source,
                [*LAYERS, *BETWEEN],
                augmented_model_path=str(Path(scratch) / "augmented.onnx"),
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"symmetric": True},
            )
            calibrator.collect_data(Reader())
            return calibrator.compute_data()

    def quantize(self, kept: Collection[str] = ()) -> onnx.ModelProto:
        """The graph with Q/DQ around everything but the layers named in `kept`."""
        return self._quantize(exclude=[*self._front, *kept], only=[])

    def _quantize(self, *, exclude: list[str], only: list[str]) -> onnx.ModelProto:
        import onnx
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        copy = onnx.ModelProto()
        copy.CopyFrom(self.proto)
        # Biases stay float: TensorRT takes them so, and ONNX Runtime quantises them itself where its kernels want that.
        options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
        int8 = QuantType.QInt8
        with quiet():
            quantizer = QDQQuantizer(copy, True, False, int8, int8, self._ranges, only, exclude, [*LAYERS, *BETWEEN], options)
            quantizer.quantize_model()
            quantizer.model.topological_sort()
            out: onnx.ModelProto = quantizer.model.model
        out.producer_name = "dtkd-edge"
        del out.graph.value_info[:]
        return onnx.shape_inference.infer_shapes(out, strict_mode=True, data_prop=True)

    def ranking(self) -> list[str]:
        """The layers, the most harmful first: by the squared error of the logits when that layer alone is quantised.

        Each head's in units of its own spread, or one with large logits would speak for all; a stream's states are no logits.
        """
        states = {f"{value.name}_next" for value in self.proto.graph.input}
        heads = [value.name for value in self.proto.graph.output if value.name not in states]
        exact = self._logits(self.proto, heads)
        units = [scales(logits, np.ones(len(logits), bool))[:, None] for logits in exact]

        def error(layer: str) -> float:
            got = self._logits(self._quantize(exclude=[], only=[layer]), heads)
            tiny = np.finfo(np.float32).tiny
            return sum(
                float(np.square((a - b) / np.maximum(unit, tiny)).mean()) for a, b, unit in zip(got, exact, units, strict=True)
            )

        errors = {layer: error(layer) for layer in self.layers}
        return sorted(self.layers, key=lambda layer: -errors[layer])

    def _logits(self, proto: onnx.ModelProto, heads: list[str]) -> list[NDArray[np.float32]]:
        """Of each head, `[clips, classes]`."""
        import onnxruntime as ort

        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        rows = [session.run(heads, feed) for feed in self._few]
        return [np.concatenate([np.reshape(row[i], (len(row[i]), -1)) for row in rows]) for i in range(len(heads))]


def hold_gate(
    quantizer: Quantizer, measure: Callable[[onnx.ModelProto], AccuracyPart]
) -> tuple[onnx.ModelProto, AccuracyPart, list[str]]:
    """Quantise; while the gate does not hold, leave the most harmful 1, 2, 4 … layers out, up to half of them.

    Returns the graph, its accuracy and the layers left out: the first that holds, otherwise the one that loses least.
    """
    proto = quantizer.quantize()
    best = proto, measure(proto), list[str]()
    if best[1].passed:
        return best
    order = quantizer.ranking()
    count = 1
    while count <= len(order) // 2:
        kept = order[:count]
        proto = quantizer.quantize(kept)
        part = measure(proto)
        if part.drop < best[1].drop:
            best = proto, part, kept
        if part.passed:
            break
        count *= 2
    return best


def _in_front(proto: onnx.ModelProto) -> list[str]:
    """Nodes in front of the first layer, which is the normalisation: rounding it costs accuracy and wins nothing."""
    behind: set[str] = set()
    front = []
    for node in proto.graph.node:
        if node.op_type in LAYERS or any(name in behind for name in node.input):
            behind.update(node.output)
        else:
            front.append(node.name)
    return front
