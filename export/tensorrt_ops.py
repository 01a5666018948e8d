"""What TensorRT's ONNX parser (10.3 and newer) takes, so that a graph it would refuse is refused here, where one can mend it.

Operators and types: the support matrix that the parser's own documentation gives, cut to what feed-forward video networks use,
without the ones that we never let into a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtkd_edge.errors import VerificationError

if TYPE_CHECKING:
    import onnx

_FLOAT = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_NUMBER = _FLOAT | {"INT32", "INT64"}
_ANY = _NUMBER | {"BOOL", "INT8"}

# Operator → types of the data that it may work on.
OPERATORS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        [
            "AveragePool",
            "Clip",
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
            "HardSwish",
            "InstanceNormalization",
            "LayerNormalization",
            "LeakyRelu",
            "Log",
            "LogSoftmax",
            "MatMul",
            "MaxPool",
            "Mish",
            "PRelu",
            "Pow",
            "Reciprocal",
            "ReduceL2",
            "ReduceMean",
            "ReduceSum",
            "Relu",
            "Selu",
            "Sigmoid",
            "Softmax",
            "Softplus",
            "Sqrt",
            "Tanh",
        ],
        _FLOAT,
    ),
    **dict.fromkeys(
        ["Abs", "Add", "Div", "Max", "Min", "Mul", "Neg", "Sub", "Sum", "ReduceMax", "ReduceMin", "ReduceProd"], _NUMBER
    ),
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
    "DequantizeLinear": _FLOAT | {"INT8", "INT32"},
}


def check_ops(proto: onnx.ModelProto) -> None:
    """VerificationError that names the first node TensorRT's parser would refuse. The graph must carry inferred types."""
    types = tensor_types(proto)
    initializers = {t.name for t in proto.graph.initializer} | {n.output[0] for n in proto.graph.node if n.op_type == "Constant"}
    for node in proto.graph.node:
        allowed = OPERATORS.get(node.op_type)
        where = f"node {node.name} ({node.op_type})"
        if allowed is None:
            raise VerificationError(f"{where}: TensorRT's ONNX parser does not have it", "replace it in the model by plain ops")
        for name in (*node.input, *node.output):
            kind = types.get(name, "") if name else ""
            shape_like = kind in ("INT64", "INT32")  # axes, sizes, starts: parameters of the node, not its data
            if kind and kind not in allowed and not shape_like:
                raise VerificationError(f"{where}: TensorRT's parser does not take {kind} there", "cast before that node")
        if node.op_type == "Conv":
            rank = len(next((t.dims for t in proto.graph.initializer if t.name == node.input[1]), [0] * 4))
            if rank not in (4, 5):
                raise VerificationError(f"{where}: TensorRT has 2-D and 3-D convolutions only", "add a unit dimension")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2 and node.input[2] not in initializers:
            raise VerificationError(f"{where}: the zero point is not a constant", "quantise symmetrically")


def tensor_types(proto: onnx.ModelProto) -> dict[str, str]:
    """Tensor name → ONNX type name, such as FLOAT16."""
    import onnx

    name = onnx.TensorProto.DataType.Name
    graph = proto.graph
    types = {t.name: name(t.data_type) for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = name(value.type.tensor_type.elem_type)
    return types
