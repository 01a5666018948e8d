from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from export_runs import make_card, trained
from onnx import TensorProto, helper, numpy_helper

from dtkd_edge.errors import VerificationError
from dtkd_edge.export import graph as graph_module
from dtkd_edge.export.graph import EdgeGraph, check_graph, to_onnx
from dtkd_edge.export.precision import to_fp16
from dtkd_edge.export.tensorrt_ops import check_ops, tensor_types
from dtkd_edge.models import VideoModel, create_model
from dtkd_edge.models.base import ModelInfo, fit_clip

LABELS = {"verb": ["take", "put", "open"], "noun": ["cup", "pan"]}
HEADS = {head: len(names) for head, names in LABELS.items()}


def build(name: str, size: int) -> VideoModel:
    torch.manual_seed(0)
    return trained(create_model(name, HEADS, size=size))


def clips(n: int, size: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, size, size, 3), dtype=np.uint8)


def reference(model: VideoModel, frames: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {k: v.numpy() for k, v in model(fit_clip(torch.from_numpy(frames), model.info)).items()}


def run(proto: onnx.ModelProto, frames: np.ndarray) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"frames": frames}), strict=True))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoModel, onnx.ModelProto, Path]:
    model = build("tsm_tiny", 32)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return model, to_onnx(model, make_card(model, LABELS), path), path


def test_other_input_than_the_traced_one_gives_torchs_logits(tiny: tuple) -> None:
    model, proto, _ = tiny
    for seed in range(3):
        frames = clips(1, 32, seed)
        got, want = run(proto, frames), reference(model, frames)
        assert list(got) == list(HEADS)
        for head in HEADS:
            assert got[head].dtype == np.float32
            np.testing.assert_allclose(got[head], want[head], atol=1e-5)


def test_the_file_holds_nothing_of_this_machine_and_says_what_it_is(tiny: tuple) -> None:
    _, proto, path = tiny
    raw = path.read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in raw and b"/dtkd_edge/" not in raw and b'File "' not in raw
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert entries["dtkd_edge.opset"] == "18" and '"verb"' in entries["dtkd_edge.labels"]
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)


def test_batch_norm_is_folded_and_the_shift_is_slices(tiny: tuple) -> None:
    ops = {node.op_type for node in tiny[1].graph.node}
    assert "BatchNormalization" not in ops
    assert {"Slice", "Concat"} <= ops


def test_two_exports_are_the_same_bytes(tiny: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, path = tiny
    monkeypatch.setattr(graph_module, "trace", graph_module.trace.__wrapped__)  # really a second time
    again = tmp_path / "again.onnx"
    to_onnx(model, make_card(model, LABELS), again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in (
    "tsm_mobilenetv2_035", "tsm_resnet18", "tsm_mobilenetv3_small_100", "tsm_efficientnet_b0", "tsm_resnet_tiny",
    "tsm_ecaresnet26t", "tsm_mixnet_s", "tsm_hrnet_w18_small")])  # fmt: skip
def test_every_kind_of_student_exports_in_both_precisions(name: str, tmp_path: Path) -> None:
    model = build(name, 64)
    proto = to_onnx(model, make_card(model, LABELS), tmp_path / "m.onnx", batch=2)
    half = to_fp16(proto)
    frames = clips(2, 64)
    want = reference(model, frames)
    for graph, tolerance in ((proto, 1e-4), (half, 2e-2)):
        check_ops(graph)
        check_graph(graph, heads=HEADS, shape=[2, 8, 64, 64, 3])
        got = run(graph, frames)
        for head in HEADS:
            np.testing.assert_allclose(got[head], want[head], atol=tolerance * max(1, np.abs(want[head]).max()))


def test_dynamic_batch(tmp_path: Path) -> None:
    model = build("tsm_tiny", 32)
    proto = to_onnx(model, make_card(model, LABELS), tmp_path / "m.onnx", dynamic_batch=True)
    check_ops(proto)
    for n in (1, 3):
        frames = clips(n, 32)
        np.testing.assert_allclose(run(proto, frames)["verb"], reference(model, frames)["verb"], atol=1e-5)


def test_half_graph_is_typed_at_every_tensor(tiny: tuple) -> None:
    model, proto, _ = tiny
    before = proto.SerializeToString()
    half = to_fp16(proto)
    assert proto.SerializeToString() == before  # the argument is left alone
    types = tensor_types(half)
    kinds = {node.op_type: {types[n] for n in (*node.input, *node.output) if n in types} for node in half.graph.node}
    assert kinds["Conv"] == {"FLOAT16"}
    assert "FLOAT16" not in kinds["Gemm"] | kinds["ReduceMean"]  # delicate ones and the classifier
    assert len(half.SerializeToString()) < 0.7 * len(before)
    assert [node.op_type for node in half.graph.node].count("Cast") == 3  # uint8 → float32 → float16 → float32
    frames = clips(1, 32)
    np.testing.assert_allclose(run(half, frames)["verb"], reference(model, frames)["verb"], atol=5e-3)


def test_a_weight_beyond_half_precision_is_refused(tiny: tuple) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(tiny[1])
    weight = next(t for t in proto.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = 1e5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(VerificationError, match=r"100000|1e\+05"):
        to_fp16(proto)


class _Assigning(VideoModel):
    """The classical mistake: a shift by slice assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.info, self.heads = ModelInfo("assigning", ("student",), 8, 16), {"action": 3}
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        out = torch.zeros_like(x)
        out[:, :1, 1:] = x[:, :1, :-1]
        out[:, 1:] = x[:, 1:]
        return {"action": self.linear(out.mean((2, 3, 4)))}


def test_a_shift_by_slice_assignment_is_refused(tmp_path: Path) -> None:
    model = _Assigning().eval()
    with pytest.raises(VerificationError, match="Scatter"):
        to_onnx(model, make_card(model, {"action": ["a", "b", "c"]}), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def _graph(
    *nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT, shape: tuple[int, ...] = (1, 3), **constants: Any
) -> onnx.ModelProto:
    """x through the nodes to y."""
    x, y = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, None)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


def _node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name="n7", **attributes)


def _pair(*, scale: float = 0.1, zero: np.generic = np.int8(0)) -> onnx.ModelProto:
    pair = _node("QuantizeLinear", "x s z", "q"), _node("DequantizeLinear", "q s z")
    return _graph(*pair, s=np.float32(scale), z=zero)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (_graph(_node("NonMaxSuppression", "x x")), "not among the operators"),
        (_graph(_node("Relu", "x"), kind=TensorProto.DOUBLE), "DOUBLE"),
        (_graph(_node("MatMul", "x w"), kind=TensorProto.INT64, w=np.ones((3, 3), np.int64)), "INT64"),
        (_graph(_node("Cast", "x", "u", to=TensorProto.UINT8), _node("Cast", "u", to=TensorProto.FLOAT)), "UINT8"),
        (_graph(_node("Transpose", "x", perm=list(range(9))[::-1]), shape=(1,) * 9), "8 dimensions"),
        (_graph(_node("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 2]), shape=(1, 1, 8, 8)), "dilations"),
        (_graph(_node("MaxPool", "x", "y i", kernel_shape=[2, 2]), shape=(1, 1, 8, 8)), "indices|INT64"),
        (_pair(zero=np.int8(3)), "zero points of 0"),
        (_pair(scale=0.0), "not positive"),
        (_graph(_node("DequantizeLinear", "x s"), kind=TensorProto.INT32, s=np.float32(1)), "INT32"),
    ],
)  # fmt: skip
def test_what_tensorrt_refuses_is_named(graph: onnx.ModelProto, words: str) -> None:
    with pytest.raises(VerificationError, match=words) as caught:
        check_ops(graph)
    assert "n7" in caught.value.message


@pytest.mark.parametrize(
    "graph",
    [
        _pair(),
        _graph(_node("ReduceMean", "x axes"), axes=np.array([1])),
        _graph(_node("Conv", "x w"), shape=(1, 3, 8), w=np.ones((2, 3, 3), np.float32)),
        _graph(_node("MaxPool", "x", kernel_shape=[2, 2], dilations=[1, 1]), shape=(1, 1, 8, 8)),
    ],
)
def test_what_tensorrt_takes_is_let_through(graph: onnx.ModelProto) -> None:
    check_ops(graph)


def test_a_batch_norm_behind_no_convolution_is_a_multiplication_and_an_addition() -> None:
    rng = np.random.default_rng(0)
    numbers = {name: rng.random(3, np.float32) + 0.5 for name in ("w", "b", "m", "v")}
    proto = _graph(
        helper.make_node("Relu", ["x"], ["r"]),
        _node("BatchNormalization", "r w b m v", epsilon=0.1),
        shape=(2, 3, 4, 5),
        **numbers,
    )
    frames = rng.standard_normal((2, 3, 4, 5), np.float32)

    def outcome() -> np.ndarray:
        session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"x": frames})[0]

    want = outcome()
    assert graph_module.plain_norms(proto.graph) == 1 and graph_module.plain_norms(proto.graph) == 0
    assert [node.op_type for node in proto.graph.node] == ["Relu", "Mul", "Add"]
    assert len(proto.graph.initializer) == 2
    np.testing.assert_allclose(outcome(), want, atol=1e-6)


def test_a_batch_norm_of_the_input_becomes_that_too() -> None:
    weights = {name: np.ones(3, np.float32) for name in ("w", "b", "m", "v")}
    proto = _graph(_node("BatchNormalization", "x w b m v"), shape=(2, 3, 4), **weights)
    assert graph_module.plain_norms(proto.graph) == 1


def test_a_resizes_scales_stay_float32_in_half_precision() -> None:
    constants = {"w": np.ones((3, 3, 1, 1), np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    nodes = [
        helper.make_node(op, inputs, [output], name=op)
        for op, inputs, output in (("Conv", ["x", "w"], "c"), ("Resize", ["c", "", "scales"], "r"), ("ReduceMean", ["r"], "y"))
    ]
    proto = _graph(*nodes, shape=(1, 3, 4, 4), **constants)
    half = to_fp16(proto)
    check_ops(half)
    assert tensor_types(half) | {"scales": "FLOAT", "r": "FLOAT16"} == tensor_types(half)


@pytest.mark.parametrize("mean", [(0.45, 0.45, 0.45), (0.485, 0.456, 0.406)])
def test_normalisation_inside_is_the_trainings(mean: tuple[float, float, float]) -> None:
    seen = {}

    class Look(VideoModel):
        info, heads = ModelInfo("look", ("student",), 2, 4, mean=mean, std=(0.229, 0.224, 0.225)), {"action": 1}

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            seen["x"] = x
            return {"action": x.mean((1, 2, 3, 4))[:, None]}

    model = Look()
    frames = torch.arange(2 * 2 * 4 * 4 * 3, dtype=torch.int64).remainder(256).to(torch.uint8).view(2, 2, 4, 4, 3)
    EdgeGraph(model)(frames)
    torch.testing.assert_close(seen["x"], fit_clip(frames, model.info), atol=1e-6, rtol=1e-6)
