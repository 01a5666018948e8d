"""What every int8 graph keeps, whatever the weights: symmetric, one scale per output channel, rounding of half a step at most."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dtkd_edge.errors import DtkdEdgeError
from dtkd_edge.export.graph import plain_norms
from dtkd_edge.export.qdq import Quantizer


def _network(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> onnx.ModelProto:
    """x `[1, C, 4, 4]` → convolution 1×1 → mean over space: `[1, K, 1, 1]`."""
    frames = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weight.shape[1], 4, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, weight.shape[0], 1, 1])
    nodes = [
        helper.make_node("Relu", ["x"], ["front"], "front"),
        helper.make_node("Conv", ["front", "w", "b"], ["c"], "layer"),
        helper.make_node("GlobalAveragePool", ["c"], ["logits"], "pool"),
    ]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph(nodes, "g", [frames], [logits], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


def _feeds(rng: np.random.Generator, channels: int, scale: float) -> list[dict[str, NDArray[np.float32]]]:
    return [{"x": (scale * rng.standard_normal((1, channels, 4, 4))).astype(np.float32)} for _ in range(4)]


def _run(proto: onnx.ModelProto, feed: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], feed)[0].ravel()
    return logits


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    channels=st.tuples(st.integers(2, 6), st.integers(1, 8)),
    spread=st.lists(st.integers(-10, 10), min_size=6, max_size=6),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_weights_have_a_scale_per_channel_no_zero_point_and_half_a_step_of_error(
    seed: int, channels: tuple[int, int], spread: list[int], scale: float
) -> None:
    rng = np.random.default_rng(seed)
    out, into = channels
    sizes = np.exp2(np.array(spread[:out], np.float32))  # channels a million times apart
    weight = (rng.standard_normal((out, into, 1, 1)) * sizes[:, None, None, None]).astype(np.float32)
    bias = rng.standard_normal(out).astype(np.float32) * sizes * scale
    feeds = _feeds(rng, into, scale)
    proto = _network(weight, bias.astype(np.float32))
    made = Quantizer(proto, feeds).quantize()
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    pairs = [node for node in made.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        assert (constants[node.input[2]] == 0).all() and constants[node.input[2]].dtype == np.int8, node.name
    (stored,) = [node for node in pairs if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    steps = constants[stored.input[1]]
    assert steps.shape == (out,)
    back = constants[stored.input[0]].astype(np.float64) * steps[:, None, None, None]
    assert (np.abs(back - weight) <= 0.5001 * steps[:, None, None, None]).all()
    largest = np.abs(weight).reshape(out, -1).max(1)
    assert steps == pytest.approx(largest / 127, rel=0.01)  # all of int8 is used
    assert not any(node.op_type == "QuantizeLinear" and node.input[0] == "x" for node in made.graph.node)
    # A logit is a mean over space of Σ w·x + b: half a step of each weight and input, and one step of the logits themselves.
    for feed in feeds:
        exact, got = _run(proto, feed), _run(made, feed)
        x = np.maximum(feed["x"], 0).reshape(into, -1)
        reach = max(np.maximum(other["x"], 0).max() for other in feeds) / 127
        ranges = [np.abs(_run(proto, other)).max() for other in feeds]
        allowed = 0.5 * steps * x.mean(1).sum() + 0.51 * reach * np.abs(weight).sum((1, 2, 3)) + max(ranges) / 127
        # The activation before the mean is rounded too.
        room = (np.abs(weight).sum((1, 2, 3)) * x.max() + np.abs(bias)).max() / 127
        assert (np.abs(got - exact) <= 1.01 * (allowed + room)).all()


def test_a_channel_of_zeros_stays_zeros() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 4, 1, 1)).astype(np.float32)
    weight[1] = 0
    proto = _network(weight, np.zeros(3, np.float32))
    feeds = _feeds(rng, 4, 1.0)
    made = Quantizer(proto, feeds).quantize()
    assert np.isfinite(_run(made, feeds[0])).all() and _run(made, feeds[0])[1] == 0


def test_the_layer_that_is_left_out_keeps_its_float_weights() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 4, 1, 1)).astype(np.float32)
    quantizer = Quantizer(_network(weight, np.zeros(3, np.float32)), _feeds(rng, 4, 1.0))
    (layer,) = [node for node in quantizer.quantize(kept=["layer"]).graph.node if node.name == "layer"]
    assert layer.input[1] == "w"


@pytest.mark.parametrize("second", ["other", "s_next"])
def test_layers_are_ranked_by_what_the_logits_lose_in_their_own_spread(second: str) -> None:
    """Two layers side by side. One's logits are a thousand times larger and lose next to nothing, or are a stream's state; the
    other's hang on a channel that is rounded away beside a larger one."""
    rng = np.random.default_rng(0)
    fine = np.array([[0, 1], [0, -1]], np.float32)[:, :, None, None]
    large = 1e3 * rng.standard_normal((2, 2, 1, 1)).astype(np.float32)
    shapes = {"x": [1, 2, 1, 1], "s": [1, 2, 1, 1], "logits": [1, 2, 1, 1], second: [1, 2, 1, 1]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Relu", ["x"], ["front"], "front"),
        helper.make_node("Relu", ["s"], ["past"], "past"),
        helper.make_node("Conv", ["front", "fine"], ["logits"], "layer of fine"),
        helper.make_node("Conv", ["past", "large"], [second], "layer of large"),
    ]
    constants = [numpy_helper.from_array(fine, "fine"), numpy_helper.from_array(large, "large")]
    graph = helper.make_graph(nodes, "g", [values["x"], values["s"]], [values["logits"], values[second]], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = [{name: rng.uniform(0, 1, (1, 2, 1, 1)).astype(np.float32) for name in ("x", "s")} for _ in range(16)]
    for feed in feeds:
        feed["x"][:, 0] = 1000
    assert Quantizer(onnx.shape_inference.infer_shapes(proto), feeds).ranking()[0] == "layer of fine"


def test_a_graph_without_a_layer_is_refused() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    with pytest.raises(DtkdEdgeError, match="no convolution or matrix product"):
        Quantizer(helper.make_model(graph), [])


def test_a_norm_that_was_folded_keeps_its_numbers_beside_the_quantizers() -> None:
    """The quantizer calls the scale of a tensor `x` `x_scale`: a name that a folded norm must not have taken."""
    rng = np.random.default_rng(0)
    proto = _network(rng.standard_normal((3, 4, 1, 1)).astype(np.float32), np.zeros(3, np.float32))
    norm = helper.make_node("BatchNormalization", ["front", "n", "n", "n", "n"], ["normed"])
    proto.graph.node.insert(1, norm)
    proto.graph.node[2].input[0] = "normed"
    proto.graph.initializer.append(numpy_helper.from_array(rng.uniform(0.5, 2, 4).astype(np.float32), "n"))
    proto = onnx.shape_inference.infer_shapes(proto)
    feeds = _feeds(rng, 4, 1.0)
    exact = _run(proto, feeds[0])
    assert plain_norms(proto.graph) == 1
    made = Quantizer(onnx.shape_inference.infer_shapes(proto), feeds).quantize()
    names = [tensor.name for tensor in made.graph.initializer]
    assert len(names) == len(set(names))
    np.testing.assert_allclose(_run(made, feeds[0]), exact, atol=0.05 * np.abs(exact).max())
