"""fp16 as a typed graph: half-precision weights and activations written into the ONNX file itself.

TensorRT 11 has no FP16 flag any more: it computes in the types that the graph states, as 10.3 does with STRONGLY_TYPED. The same
file runs on ONNX Runtime. It is done on the graph and not by tracing `model.half()`, because delicate operations in the middle
of somebody's model can then stay in float32 without touching that model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dtkd_edge.errors import VerificationError

if TYPE_CHECKING:
    import onnx

# Sums over many values, and functions that overflow half precision (exp of 12 does): left in float32.
DELICATE = frozenset(
    [
        "ReduceMean",
        "ReduceSum",
        "ReduceL2",
        "GlobalAveragePool",
        "Softmax",
        "LogSoftmax",
        "LayerNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "Exp",
        "Log",
        "Pow",
        "Sqrt",
        "Reciprocal",
    ]
)
_SHAPES = frozenset({"Shape", "Constant", "ConstantOfShape"})
HALF_MAX = 65504.0


def to_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph → the same graph in float16, uint8 in and float32 out at the edges. The argument is left alone.

    In float32 stay: everything in front of the first convolution or matrix product (the normalisation), DELICATE operations,
    and the classifiers. Raises VerificationError when a weight does not fit into half precision.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from dtkd_edge.export.tensorrt_ops import tensor_types

    model = onnx.ModelProto()
    model.CopyFrom(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))
    graph = model.graph
    types = tensor_types(model)
    constants = {t.name: t for t in graph.initializer}
    outputs = {v.name for v in graph.output}
    half = _half_nodes(graph, outputs, {name for name, kind in types.items() if kind == "FLOAT"}, set(constants))

    nodes: list[onnx.NodeProto] = []
    now: dict[str, str] = dict(types)  # the type that each tensor has in the new graph
    casts: dict[tuple[str, str], str] = {}
    added: dict[str, onnx.TensorProto] = {}

    def as_type(name: str, kind: str) -> str:
        """The tensor in that type: a converted constant, or one shared Cast."""
        if not name or types.get(name) != "FLOAT" or now[name] == kind:
            return name
        if (name, kind) in casts:
            return casts[name, kind]
        new = f"{name}_{kind.lower()}"
        if name in constants:
            value = numpy_helper.to_array(constants[name])
            peak = float(np.abs(value).max(initial=0.0))
            if not np.isfinite(value).all() or peak > HALF_MAX:
                raise VerificationError(f"weight {name} reaches {peak:g}, more than half precision holds", "use --precision fp32")
            added[new] = numpy_helper.from_array(value.astype(np.float16), new)
        else:
            to = TensorProto.FLOAT16 if kind == "FLOAT16" else TensorProto.FLOAT
            nodes.append(helper.make_node("Cast", [name], [new], name=f"cast_{new}", to=to))
        casts[name, kind] = new
        return new

    for node in graph.node:
        kind = "FLOAT16" if node.name in half else "FLOAT"
        if node.op_type not in _SHAPES:
            data = 1 if node.op_type == "Resize" else len(node.input)  # its scales are float32 for any data
            for i, name in enumerate(node.input[:data]):
                node.input[i] = as_type(name, kind)
        nodes.append(node)
        for name in node.output:
            if types.get(name) == "FLOAT":
                now[name] = kind
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *(t for t in added.values() if t.name in used)])
    del graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _half_nodes(graph: onnx.GraphProto, outputs: set[str], floats: set[str], constants: set[str]) -> set[str]:
    """Names of the nodes that compute in half precision."""
    seen_heavy: set[str] = set()  # tensors that come after a convolution or a matrix product
    half: set[str] = set()
    for node in graph.node:
        heavy = node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        after = heavy or any(name in seen_heavy for name in node.input)
        if after:
            seen_heavy.update(node.output)
        works_on_floats = any(name in floats for name in (*node.input, *node.output))
        edge = any(name in outputs for name in node.output)
        if after and works_on_floats and not edge and node.op_type not in DELICATE and node.op_type != "Cast":
            half.add(node.name)
    # A node between two float32 nodes that only moves data (the reshape behind a mean) would be cast there and back for nothing.
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for node in graph.node:
        if node.name in half and node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"):
            before = [makers[n] for n in node.input if n in makers and n in floats]
            after_nodes = [u for n in node.output for u in users.get(n, [])]
            if before and after_nodes and all(n.name not in half for n in (*before, *after_nodes)):
                half.discard(node.name)
    return half
