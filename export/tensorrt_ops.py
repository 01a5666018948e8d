"""What TensorRT's ONNX parser (10.3 and newer) takes, so that a graph it would refuse is refused here, where one can mend it.

Operators and types: the support matrix that the parser's own documentation gives, cut to what feed-forward video networks use,
without the ones that we never let into a graph. tests/export/test_rtx.py holds it against the parser and builder of TensorRT-RTX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtkd_edge.errors import VerificationError

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

_FLOAT = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_NUMBER = _FLOAT | {"INT32", "INT64"}
_ANY = _NUMBER | {"BOOL", "INT8"}

# Operator → types of the data that it may work on.
OPERATORS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        [
            "AveragePool",
            "Conv",
            "ConvTranspose",
            "Elu",
            "Erf",
            "Exp",
            "Gemm",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Gelu",
            "GroupNormalization",
            "HardSigmoid",
            "InstanceNormalization",
            "LayerNormalization",
            "LeakyRelu",
            "Log",
            "LogSoftmax",
            "MatMul",
            "MaxPool",
            "PRelu",
            "Reciprocal",
            "ReduceL2",
            "Relu",
            "Resize",
            "Selu",
            "Sigmoid",
            "Softmax",
            "Softplus",
            "Sqrt",
            "Tanh",
        ],
        _FLOAT,
    ),
    **dict.fromkeys(["HardSwish", "Mish"], _FLOAT - {"BFLOAT16"}),
    **dict.fromkeys(["Abs", "Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Pow", "Sub", "Sum"], _NUMBER),
    **dict.fromkeys(["ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"], _NUMBER),
    **dict.fromkeys(
        [
            "Concat",
            "Constant",
            "ConstantOfShape",
            "Expand",
            "Flatten",
            "Gather",
            "Identity",
            "Pad",
            "Reshape",
            "Shape",
            "Slice",
            "Split",
            "Squeeze",
            "Tile",
            "Transpose",
            "Unsqueeze",
            "Where",
        ],
        _ANY,
    ),
    "Cast": _ANY | {"UINT8"},  # uint8 only as the network's input, and only into a Cast
    "QuantizeLinear": _FLOAT | {"INT8"},
    "DequantizeLinear": _FLOAT | {"INT8"},
}
MOST_DIMENSIONS = 8


def check_ops(proto: onnx.ModelProto) -> None:
    """VerificationError that names the first node TensorRT's parser would refuse. The graph must carry inferred types."""
    types, constants = tensor_types(proto), _constants(proto)
    inputs, outputs = {v.name for v in proto.graph.input}, {v.name for v in proto.graph.output}
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    deep = {v.name for v in values if len(v.type.tensor_type.shape.dim) > MOST_DIMENSIONS}
    for node in proto.graph.node:
        allowed = OPERATORS.get(node.op_type)
        where = f"node {node.name} ({node.op_type})"
        if allowed is None:
            raise VerificationError(
                f"{where}: not among the operators that are known to pass TensorRT's parser",
                "replace it in the model by plain ops",
            )
        parameters = node.input[1:] if node.op_type.startswith(("Reduce", "Resize")) else ()  # axes; scales or sizes
        for name in (*node.input, *node.output):
            kind = types.get(name, "")
            between = kind == "UINT8" and name not in inputs and name not in outputs
            if kind and name not in parameters and (kind not in allowed or between):
                raise VerificationError(f"{where}: TensorRT's parser does not take {kind} there", "cast before that node")
            if name in deep:
                raise VerificationError(f"{where}: TensorRT's tensors have {MOST_DIMENSIONS} dimensions at most", "merge some")
        if node.op_type == "MaxPool":
            dilations = next((list(a.ints) for a in node.attribute if a.name == "dilations"), [])
            if len(node.output) > 1 or set(dilations) - {1}:
                raise VerificationError(
                    f"{where}: TensorRT's parser takes neither indices nor dilations there", "use plain pooling"
                )
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, *points = (constants.get(name) for name in node.input[1:] if name)
            if any(point is None or point.any() for point in points):
                raise VerificationError(f"{where}: TensorRT's parser takes constant zero points of 0", "quantise symmetrically")
            if scale is not None and not (scale > 0).all():
                raise VerificationError(f"{where}: a scale is not positive", "report this")


def _constants(proto: onnx.ModelProto) -> dict[str, NDArray]:
    """Those that scales and zero points may be."""
    from onnx import numpy_helper

    wanted = {
        name for n in proto.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear") for name in n.input[1:] if name
    }
    tensors = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return {name: numpy_helper.to_array(tensors[name]) for name in wanted & set(tensors)}


def tensor_types(proto: onnx.ModelProto) -> dict[str, str]:
    """Tensor name → ONNX type name, such as FLOAT16."""
    import onnx

    name = onnx.TensorProto.DataType.Name
    graph = proto.graph
    types = {t.name: name(t.data_type) for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = name(value.type.tensor_type.elem_type)
    return types
