"""The ONNX graph: uint8 RGB `frames [N, T, H, W, 3]` in, logits per head out; normalisation and layout are inside.

Outside of the graph nothing is left that a user could get wrong: no scaling, no mean, no channel order, no layout.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dtkd_edge.errors import DtkdEdgeError, VerificationError
from dtkd_edge.export.targets import IR_VERSION, OPSET
from dtkd_edge.files import atomic_path
from dtkd_edge.models.base import ModelInfo, VideoModel
from dtkd_edge.models.saved import ModelCard

if TYPE_CHECKING:
    import onnx

# Slow or wrong somewhere, and never needed by a feed-forward CNN: slice assignment becomes ScatterND, Python flow If and Loop.
FORBIDDEN = frozenset({"ScatterND", "ScatterElements", "Scatter", "If", "Loop", "Scan", "NonZero", "BatchNormalization"})
FORBIDDEN_PREFIXES = ("Sequence", "Optional", "Random", "ConcatFromSequence", "SplitToSequence")


class Normalise(nn.Module):
    """uint8 frames `[…, H, W, 3]` → normalised float `[…, 3, H, W]`."""

    scale: Tensor
    shift: Tensor

    def __init__(self, info: ModelInfo) -> None:
        super().__init__()
        mean, std = torch.tensor(info.mean, dtype=torch.float64), torch.tensor(info.std, dtype=torch.float64)
        # (x/255 - mean)/std as one multiplication and one addition, rounded once.
        self.register_buffer("scale", (1 / (255 * std)).float().view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).float().view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        # Cast first: TensorRT takes a uint8 input only in front of a Cast. Then per-frame channels-first, the layout that 2-D
        # networks over frames fold to for nothing.
        dims = frames.dim()
        return frames.to(torch.float32).permute(*range(dims - 3), dims - 1, dims - 3, dims - 2) * self.scale + self.shift


class EdgeGraph(nn.Module):
    """What is traced: uint8 frames `[N, T, H, W, 3]` → logits of every head, in the order of `student.heads`."""

    def __init__(self, student: VideoModel) -> None:
        super().__init__()
        self.student = student
        self.heads = list(student.heads)
        self.edge = Normalise(student.info)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        logits = self.student(self.edge(frames).transpose(1, 2))  # for 3-D networks this moves whole planes
        return tuple(logits[head] for head in self.heads)


def to_onnx(
    model: VideoModel, card: ModelCard, path: Path, *, batch: int = 1, dynamic_batch: bool = False, opset: int = OPSET
) -> onnx.ModelProto:
    """Trace, clean and check the student's graph, write it to `path` and return it.

    Static shapes unless `dynamic_batch`. Raises VerificationError when the graph holds what it must not.
    """
    info = model.info
    # A traced batch of one would be specialised away, so a dynamic batch is traced with two.
    example = torch.zeros(2 if dynamic_batch else batch, info.frames, info.size, info.size, 3, dtype=torch.uint8)
    dynamic = ({0: torch.export.Dim("N", min=1, max=4096)},) if dynamic_batch else None
    graph = EdgeGraph(model).eval()
    proto = trace(graph, (example,), opset, info.name, inputs=["frames"], outputs=graph.heads, dynamic=dynamic)
    if dynamic_batch:
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "N"
    return finish(proto, card, path, opset, shape=[-1 if dynamic_batch else batch, *example.shape[1:]])


def trace(
    module: nn.Module, example: tuple[Any, ...], opset: int, name: str, *,
    inputs: list[str], outputs: list[str], dynamic: Any = None,
) -> onnx.ModelProto:  # fmt: skip
    """The dynamo exporter, silenced; DtkdEdgeError that names the model when it fails."""
    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=opset,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=dynamic,
                optimize=True,
                verbose=False,
            )
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise DtkdEdgeError(
                f"{name}: the graph cannot be traced: {reason}", "the model uses an operation that ONNX lacks; see --debug"
            ) from error
    assert program is not None
    return clean(program.model_proto)


def finish(
    proto: onnx.ModelProto,
    card: ModelCard,
    path: Path,
    opset: int,
    *,
    shape: list[int],
    states: dict[str, list[int]] | None = None,
) -> onnx.ModelProto:
    """Infer every tensor's type, add the metadata, check, write."""
    import onnx

    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    if plain_norms(proto.graph):
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    add_metadata(proto, metadata(card, opset))
    check_graph(proto, heads=card.heads, shape=shape, states=states)
    save_onnx(proto, path)
    return proto


def clean(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Take out what the exporter leaves for its own debugging (stack traces with this machine's paths), fix the format."""
    del proto.metadata_props[:]
    proto.ir_version = IR_VERSION
    proto.producer_name = "dtkd-edge"
    proto.doc_string = ""
    graph = proto.graph
    graph.name = "dtkd-edge"
    graph.doc_string = ""
    del graph.value_info[:]  # inferred again later; the exporter's may name symbols that are gone
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        if item.metadata_props:
            del item.metadata_props[:]
    del proto.functions[:]
    used = {node.domain for node in graph.node}
    kept = [entry for entry in proto.opset_import if entry.domain in used | {""}]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    return proto


def plain_norms(graph: onnx.GraphProto) -> int:
    """A batch norm that the exporter could not fold (behind a concatenation, say) becomes a multiplication and an addition.

    Returns how many there were."""
    from onnx import helper, numpy_helper

    tensors = {t.name: t for t in graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.input, *graph.value_info)}
    nodes, found = [], 0
    for node in graph.node:
        if node.op_type != "BatchNormalization" or not all(name in tensors for name in node.input[1:]) or len(node.output) > 1:
            nodes.append(node)
            continue
        found += 1
        weight, bias, mean, var = (numpy_helper.to_array(tensors[name]).astype("float64") for name in node.input[1:])
        scale = weight / (var + next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)) ** 0.5
        shape = (-1, *[1] * (ranks[node.input[0]] - 2))
        out = f"{node.output[0]}_norm"  # a node may have no name; and a quantizer calls the scale of x `x_scale`
        for name, value in (("scale", scale), ("shift", bias - mean * scale)):
            graph.initializer.append(numpy_helper.from_array(value.astype("float32").reshape(shape), f"{out}_{name}"))
        nodes.append(helper.make_node("Mul", [node.input[0], f"{out}_scale"], [f"{out}_scaled"], name=f"{out}_mul"))
        nodes.append(helper.make_node("Add", [f"{out}_scaled", f"{out}_shift"], [node.output[0]], name=f"{out}_add"))
    if found:
        used = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(kept)
    return found


def metadata(card: ModelCard, opset: int = OPSET) -> dict[str, str]:
    """What travels inside the file itself (ONNX metadata_props, OpenVINO rt_info), for who finds it without the manifest."""
    return {
        "dtkd_edge.model": card.model,
        "dtkd_edge.version": card.version,
        "dtkd_edge.opset": str(opset),
        "dtkd_edge.input": "uint8 RGB [N, T, H, W, 3]; normalisation is inside",
        "dtkd_edge.preprocess": json.dumps(card.preprocess.model_dump(mode="json")),
        "dtkd_edge.labels": json.dumps(card.labels, ensure_ascii=False),
    }


def add_metadata(proto: onnx.ModelProto, entries: dict[str, str]) -> None:
    for key, value in entries.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value


def check_graph(
    proto: onnx.ModelProto, *, heads: dict[str, int], shape: list[int], states: dict[str, list[int]] | None = None
) -> None:
    """VerificationError unless the graph keeps the contract: names, shapes, dtypes, Cast first, no forbidden op, valid ONNX.

    shape: of `frames`, -1 for a dynamic batch. states: of a streaming graph, name → shape.
    """
    import onnx

    bad = sorted({n.op_type for n in proto.graph.node if n.op_type in FORBIDDEN or n.op_type.startswith(FORBIDDEN_PREFIXES)})
    foreign = sorted({n.domain for n in proto.graph.node if n.domain not in ("", "ai.onnx")})
    if bad or foreign:
        raise VerificationError(
            f"the exported graph has {', '.join(bad or foreign)}", "write that part of the model with slices and concatenations"
        )
    inputs = [(v.name, v.type.tensor_type.elem_type, _dims(v)) for v in proto.graph.input]
    outputs = [(v.name, v.type.tensor_type.elem_type, _dims(v)) for v in proto.graph.output]
    real, states = onnx.TensorProto.FLOAT, states or {}
    want_in = [("frames", onnx.TensorProto.UINT8, shape), *((name, real, dims) for name, dims in states.items())]
    want_out = [(head, real, [shape[0], classes]) for head, classes in heads.items()]
    want_out += [(f"{name}_next", real, dims) for name, dims in states.items()]
    if inputs != want_in or outputs != want_out:
        raise VerificationError(f"the exported graph has {inputs} → {outputs}, not {want_in} → {want_out}", "report this")
    users = [n.op_type for n in proto.graph.node if "frames" in n.input]
    if users != ["Cast"]:
        raise VerificationError(f"frames go into {users}, TensorRT needs one Cast first", "report this")
    onnx.checker.check_model(proto, full_check=True)


def save_onnx(proto: onnx.ModelProto, path: Path) -> None:
    import onnx

    with atomic_path(path) as aside:
        onnx.save(proto, str(aside), format="protobuf")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter: it reports its progress by print, by logging and by warnings that are no concern of the user's."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "nncf", "torch")]
    levels = [logger.level for logger in loggers]
    with Path(os.devnull).open("w") as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            with redirect_stdout(sink), redirect_stderr(sink):
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _dims(value: Any) -> list[int]:
    return [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]
