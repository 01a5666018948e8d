"""Our graphs and our builder against a real parser and builder of NVIDIA's: TensorRT-RTX, the sibling of TensorRT that builds
engines without a GPU. Its libraries are in the registry, TensorRT's are not; tests/README.md says how to install them, and what
it costs. An engine of its own does not run here, and is no engine for TensorRT.
"""

import gc
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_runs import make_card, trained
from onnx import TensorProto, helper, numpy_helper

from dtkd_edge.errors import DtkdEdgeError, MissingDependency
from dtkd_edge.export import tensorrt
from dtkd_edge.export.command import export
from dtkd_edge.export.graph import to_onnx
from dtkd_edge.export.precision import to_fp16
from dtkd_edge.export.qdq import Quantizer
from dtkd_edge.export.stream import to_stream_onnx
from dtkd_edge.export.targets import TARGETS, request
from dtkd_edge.export.tensorrt import build_engine
from dtkd_edge.export.tensorrt_ops import OPERATORS, check_ops
from dtkd_edge.models import create_model

# name → frames, size, options, mode: small, because the layers are all there
GRAPHS: dict[str, tuple[int | None, int, dict[str, Any], str]] = {
    "tsm_tiny": (None, 32, {}, "clip"),
    "tsm_tiny causal": (None, 32, {"causal": True}, "stream"),
    "tsm_resnet_tiny": (None, 32, {}, "clip"),
    "tsm_mobilenetv2_035": (None, 32, {}, "clip"),
    "tsm_mobilenetv3_large_100": (None, 32, {}, "clip"),
    "tsm_efficientnet_b0": (None, 32, {}, "clip"),
    "tsm_resnet18": (None, 32, {}, "clip"),
    "tsm_ecaresnet26t": (None, 32, {}, "clip"),
    "tsm_mixnet_s": (None, 32, {}, "clip"),
    "x3d_xs": (2, 32, {}, "clip"),
    "x3d_xs continual": (2, 32, {}, "stream"),
    "x3d_xs causal": (2, 32, {"causal": True}, "stream"),
    "slowfast_r50_8x8": (8, 32, {}, "clip"),
    "r2plus1d_18": (4, 32, {}, "clip"),
    "s3d": (8, 32, {}, "clip"),
}
LABELS = {"verb": ["take", "put", "open"], "noun": ["cup", "pan"]}


@pytest.fixture(scope="module")
def trt() -> Any:
    """The sibling under TensorRT's name: its own version counts from 1."""
    rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed, see tests/README.md")
    module = types.ModuleType("tensorrt")
    module.__dict__.update({name: value for name, value in vars(rtx).items() if not name.startswith("__")}, __version__="11.4")
    return module


def build(trt: Any, proto: onnx.ModelProto, folder: Path, precision: str = "fp16", **options: Any) -> bytes:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    build_engine(trt, path, folder / "model.engine", request("tensorrt", precision, **options), log=folder / "build.log")
    return (folder / "model.engine").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_an_engine_is_built_of_every_students_graph(trt: Any, name: str, tmp_path: Path) -> None:
    frames, size, options, mode = GRAPHS[name]
    heads = {head: len(names) for head, names in LABELS.items()}
    torch.manual_seed(0)
    model = trained(create_model(name.partition(" ")[0], heads, frames=frames, size=size, **options))
    card = make_card(model, LABELS, options)
    if mode == "stream":
        form = model.stream_form().eval()
        proto = to_stream_onnx(form, card, tmp_path / "traced.onnx")
        states = {state: value.numpy() for state, value in form.states(1).items()}
    else:
        proto, states = to_onnx(model, card, tmp_path / "traced.onnx"), {}
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(0)
    feeds = [{"frames": rng.integers(0, 256, shape, dtype=np.uint8), **states} for _ in range(2)]
    graphs = {"fp32": proto, "fp16": to_fp16(proto), "int8": Quantizer(proto, feeds).quantize()}
    assert set(graphs) == set(TARGETS["tensorrt"].precisions)
    for precision, graph in graphs.items():
        check_ops(graph)
        assert build(trt, graph, tmp_path, precision)
        log = (tmp_path / "build.log").read_text().splitlines()
        assert log and not [line for line in log if not line.startswith("INFO: ")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops in TensorRT-RTX:DeprecationWarning")
def test_the_folder_of_another_machine_becomes_an_engine(trt: Any, run: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDependency):
        export(run, target="tensorrt")
    asked = request("tensorrt", workspace=256, optimization_level=1)
    path, engine, cache = run / "export" / "tensorrt-fp16" / "model.onnx", tmp_path / "model.engine", tmp_path / "timing.cache"
    build_engine(trt, path, engine, asked, timing_cache=cache, log=tmp_path / "build.log")
    assert engine.stat().st_size and cache.stat().st_size
    with pytest.raises(DtkdEdgeError, match="finds 0 DLA cores"):
        build_engine(trt, path, engine, request("tensorrt", dla=0))


def test_the_parsers_refusal_names_the_node(trt: Any, tmp_path: Path) -> None:
    proto = one_node("MaxPool", "FLOAT", dilations=[2, 2])
    with pytest.raises(DtkdEdgeError, match=r"model\.onnx: node node_7 \(MaxPool\): .*does not support dilations") as caught:
        build(trt, proto, tmp_path)
    assert "replace that operation" in caught.value.hint and not (tmp_path / "model.engine").exists()
    assert "dilations" in (tmp_path / "build.log").read_text()


def test_the_builders_refusal_is_quoted(trt: Any, tmp_path: Path) -> None:
    """int8 constants are for DequantizeLinear alone; that is not the parser's affair."""
    proto = one_node("Concat", "INT8")
    proto.graph.node[1].input[1] = "constant"
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((1, 4, 8, 8), np.int8), "constant"))
    with pytest.raises(DtkdEdgeError, match=r"builds no engine: .*Quantized constant"):
        build(trt, proto, tmp_path)


def test_a_failed_build_does_not_stop_the_next(trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting the first one's objects while TensorRT logs in the second once waited for ever."""
    with pytest.raises(DtkdEdgeError) as caught:
        build(trt, one_node("MaxPool", "FLOAT", dilations=[2, 2]), tmp_path)
    caught.value.itself = caught.value  # type: ignore[attr-defined]
    del caught
    real = tensorrt.make_logger

    def collecting(module: Any) -> Any:
        logger = real(module)

        class Collecting(type(logger)):  # type: ignore[misc]
            calls = 0

            def log(self, severity: Any, msg: str) -> None:
                self.calls += 1
                if self.calls < 4:  # it takes a while, and there are thousands of lines
                    gc.collect()
                super().log(severity, msg)

        return Collecting()

    monkeypatch.setattr(tensorrt, "make_logger", collecting)
    assert build(trt, one_node("Relu", "FLOAT"), tmp_path)


def test_a_damaged_file_is_said_to_be_damaged(trt: Any, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08onnx" * 9)
    with pytest.raises(DtkdEdgeError) as caught:
        build_engine(trt, tmp_path / "model.onnx", tmp_path / "model.engine", request("tensorrt"))
    assert "the file is damaged" in caught.value.hint


ATTRIBUTES: dict[str, dict[str, Any]] = {
    "AveragePool": {"kernel_shape": [3, 3]},
    "MaxPool": {"kernel_shape": [3, 3]},
    "Concat": {"axis": 1},
    "Split": {"axis": 1, "num_outputs": 2},
    "Transpose": {"perm": [0, 2, 3, 1]},
    "Cast": {"to": TensorProto.FLOAT},
    "Resize": {"mode": "linear"},
    "GroupNormalization": {"num_groups": 2},
}
# Operator → its inputs beside x: x again, the shape of a tensor of its type (a tuple), or integers (a list).
INPUTS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(["Add", "Concat", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Sum"], ("x",)),
    **dict.fromkeys(["Conv", "ConvTranspose"], ((4, 4, 3, 3), (4,))),
    **dict.fromkeys(["InstanceNormalization", "GroupNormalization"], ((4,), (4,))),
    **{op: ([2, 3],) for op in OPERATORS if op.startswith("Reduce")},
    "Gemm": ((8, 3), (3,)),
    "MatMul": ((8, 3),),
    "LayerNormalization": ((8,), (8,)),
    "PRelu": ((4, 1, 1),),
    "Clip": ((), ()),
    "Expand": ([2, 4, 8, 8],),
    "Gather": ([0],),
    "Pad": ([0, 0, 1, 1, 0, 0, 1, 1],),
    "Reshape": ([1, 4, 64],),
    "Slice": ([1], [3], [1]),
    "Squeeze": ([0],),
    "Unsqueeze": ([0],),
    "Tile": ([1, 2, 1, 1],),
}
# Types that are the node's other side, the students' input (uint8) or a constant (int8: for DequantizeLinear alone), and what the
# sibling's builder lacks.
NOT_DATA = {
    "Cast": {"UINT8"}, "Constant": {"INT8"}, "ConstantOfShape": {"INT8"}, "ConvTranspose": {"BFLOAT16"},
    "QuantizeLinear": {"INT8"}, "DequantizeLinear": {"FLOAT", "FLOAT16", "BFLOAT16"},
}  # fmt: skip
NEWER = {"Gelu": 20, "GroupNormalization": 21}  # the opset in which our exporter's is not yet
BF16 = 22  # in which many operators take it


def one_node(op: str, kind: str, **more: Any) -> onnx.ModelProto:
    """A float input, made to that type as our graphs do it, into one node."""
    number, quantised = getattr(TensorProto, kind), kind == "INT8"
    shape = [8, 8] if op == "Gemm" else [1, 4, 8, 8]
    tensors, names = [], ["x"]
    for i, given in enumerate(INPUTS.get(op, ())):
        names.append("x" if given == "x" else f"in{i}")
        if isinstance(given, list):
            tensors.append(helper.make_tensor(f"in{i}", TensorProto.INT64, [len(given)], given))
        elif given != "x":
            tensors.append(helper.make_tensor(f"in{i}", number, given, np.ones(given).ravel().tolist()))
    attributes = {**ATTRIBUTES.get(op, {}), **more}
    nodes = [helper.make_node("Cast", ["float"], ["x"], name="cast", to=number)]
    if quantised or op in ("QuantizeLinear", "DequantizeLinear"):
        scale = number if op == "QuantizeLinear" else TensorProto.FLOAT
        tensors += [helper.make_tensor("scale", scale, [], [0.1]), helper.make_tensor("zero", TensorProto.INT8, [], [0])]
    if quantised:
        nodes = [helper.make_node("QuantizeLinear", ["float", "scale", "zero"], ["x"], name="quantise")]
    if op in ("QuantizeLinear", "DequantizeLinear"):
        names += ["scale", "zero"]
    if op == "Resize":
        tensors.append(helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 2, 2]))
        names = ["x", "", "scales"]
    if op == "Where":
        tensors.append(numpy_helper.from_array(np.ones(shape, bool), "mask"))
        names = ["mask", "x", "x"]
    if op in ("Constant", "ConstantOfShape"):  # beside x, for a graph needs an input
        value = helper.make_tensor("value", number, [1] if op == "ConstantOfShape" else shape, [1] * (1 if "Of" in op else 256))
        nodes.append(helper.make_node(op, ["shape"] if "Of" in op else [], ["made"], name="node_6", value=value))
        tensors.append(helper.make_tensor("shape", TensorProto.INT64, [4], shape))
        op, names, attributes = "Concat", ["x", "made"], {"axis": 1}
    outputs = ["y", "z"] if op == "Split" else ["y"]
    nodes.append(helper.make_node(op, names, outputs, name="node_7", **attributes))
    kinds = {
        "Cast": TensorProto.FLOAT,
        "DequantizeLinear": TensorProto.FLOAT,
        "QuantizeLinear": TensorProto.INT8,
        "Shape": TensorProto.INT64,
    }
    made, end = kinds.get(op, number), "y"
    if made == TensorProto.INT8:
        nodes.append(helper.make_node("DequantizeLinear", ["y", "scale8", "zero8"], ["end"], name="dequantise"))
        tensors += [
            helper.make_tensor("scale8", TensorProto.FLOAT, [], [0.1]),
            helper.make_tensor("zero8", TensorProto.INT8, [], [0]),
        ]
    elif made != TensorProto.INT64:
        nodes.append(helper.make_node("Cast", ["y"], ["end"], name="back", to=TensorProto.FLOAT))
    if made != TensorProto.INT64:
        end, made = "end", TensorProto.FLOAT
    source, sink = (
        helper.make_tensor_value_info("float", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info(end, made, None),
    )
    graph = helper.make_graph(nodes, op, [source], [sink], tensors)
    opset = BF16 if kind == "BFLOAT16" else NEWER.get(op, 19 if op in ("QuantizeLinear", "DequantizeLinear") else 18)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPERATORS)
def test_what_we_let_through_is_built(trt: Any, op: str, tmp_path: Path) -> None:
    for kind in sorted(OPERATORS[op] - NOT_DATA.get(op, set())):
        proto = onnx.shape_inference.infer_shapes(one_node(op, kind), strict_mode=True, data_prop=True)
        check_ops(proto)
        assert build(trt, proto, tmp_path), kind
