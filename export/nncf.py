"""int8 for OpenVINO by NNCF's post-training quantisation; its accuracy control where that alone costs too much."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from dtkd_edge.errors import DtkdEdgeError, MissingDependency
from dtkd_edge.export.graph import quiet

LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
RANKING_CLIPS = 32

# A compiled model, numbers of clips → (the share of them that it gets right, a number for each to rank layers by)
Score = Callable[[Any, list[int]], tuple[float, list[float]]]


def quantize(model: Any, feeds: list[dict[str, NDArray]]) -> Any:
    """A float32 `openvino.Model` → the int8 one: symmetric weights per channel, activations with a zero point. `model` stays."""
    nncf = _import()
    with quiet():
        return _checked(
            lambda: nncf.quantize(
                model.clone(),
                nncf.Dataset(feeds),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(feeds),
                ignored_scope=nncf.IgnoredScope(names=depthwise_3d(model)),
            )
        )


def quantize_within(model: Any, feeds: list[dict[str, NDArray]], clips: int, score: Score, max_drop: float) -> Any:
    """As `quantize`, and layers go back to float32 until the score drops by no more than `max_drop` points, or half of them have.

    clips: how many clips `score` looks at.
    """
    nncf = _import()
    excluded = depthwise_3d(model)
    from nncf.quantization.advanced_parameters import AdvancedAccuracyRestorerParameters

    def validate(compiled: Any, numbers: Any) -> tuple[float, list[float]]:
        return score(compiled, [int(number) for number in numbers])

    with quiet():
        return _checked(
            lambda: nncf.quantize_with_accuracy_control(
                model.clone(),
                nncf.Dataset(feeds),
                nncf.Dataset(list(range(clips))),
                validate,
                max_drop=max_drop / 100,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(feeds),
                ignored_scope=nncf.IgnoredScope(names=excluded),
                advanced_accuracy_restorer_parameters=AdvancedAccuracyRestorerParameters(
                    max_num_iterations=max(1, (len(layers(model)) - len(excluded)) // 2),
                    ranking_subset_size=min(RANKING_CLIPS, clips),
                ),
            )
        )


def depthwise_3d(model: Any) -> list[str]:
    """Names of the depthwise 3-D convolutions, which stay in float: OpenVINO's CPU plugin has no faster kernel for them in int8,
    and, with bfloat16 around them, none at all ("No suitable implementations")."""
    ops = (op for op in model.get_ordered_ops() if op.get_type_name() == "GroupConvolution")
    return [op.get_friendly_name() for op in ops if op.get_output_partial_shape(0).rank.get_length() == 5]


def layers(model: Any) -> dict[str, bool]:
    """Convolutions and matrix products by name → whether their weights are int8."""
    return {op.get_friendly_name(): _int8_weights(op) for op in model.get_ordered_ops() if op.get_type_name() in LAYERS}


def _int8_weights(op: Any) -> bool:
    node = op.input_value(1).get_node()
    while node.get_input_size():  # Constant i8 → Convert → Multiply [→ Reshape] → the layer
        node = node.input_value(0).get_node()
    return str(node.get_element_type().get_type_name()) in ("i8", "u8")


def version() -> str:
    return str(_import().__version__)


def _checked(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # NNCF's and OpenVINO's own classes share no base
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DtkdEdgeError(
            f"NNCF cannot quantise the graph: {reason}", "try --target onnx --precision int8; see --debug"
        ) from error


def _silent_import() -> Any:
    """NNCF reports its use to its makers; nobody who exports a model here was asked. It looks at this variable once."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        import nncf
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
    return nncf


def _import() -> Any:
    try:
        with quiet():  # it greets
            nncf = _silent_import()
    except ImportError as error:
        raise MissingDependency("--target openvino --precision int8 needs nncf, which is not installed", extra="int8") from error
    return nncf
