"""The tiny student's manifest, and real mp4 files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dtkd_edge.artifact import Artifact, Manifest, new_artifact, now

FRAMES, SIZE, CLASSES = 8, 40, 8
LABELS = ["left", "right", "up", "down", "turn cw", "turn ccw", "zoom in", "zoom out"]


def manifest(target: str, *, batch: int = 1, **changes: Any) -> Manifest:
    """A whole manifest of the tiny student."""
    values: dict[str, Any] = {
        "schema": "dtkd-edge/artifact/1",
        "name": f"tiny-{target}",
        "created": now(),
        "target": target,
        "precision": "fp32",
        "effective_precision": "fp32",
        "model": {"name": "tsm_tiny", "frames": FRAMES, "stride": 1, "size": SIZE, "parameters": 1, "macs": 1},
        "input": {"shape": [batch, FRAMES, SIZE, SIZE, 3]},
        "preprocess": {"resize_short": SIZE, "crop": SIZE, "sampling": {"kind": "uniform", "frames": FRAMES}},
        "outputs": [{"name": "action", "head": "action", "classes": CLASSES}],
        "labels": {"action": LABELS},
    }
    return Manifest.model_validate({**values, **changes})


def edit_manifest(folder: Path, **changes: object) -> None:
    """Give an artefact another manifest, whole and sealed, as if it had been exported like that."""
    artifact = Artifact.open(folder)
    artifact.rewrite_manifest(Manifest.model_validate({**artifact.manifest.to_json(), **changes}))


def write_mp4(path: Path, *, frames: int = 60, size: tuple[int, int] = (160, 120), fps: int = 30, seed: int = 0) -> Path:
    """A real h264 file: a bright square that walks over a dark, textured ground."""
    import av

    width, height = size
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 80, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)[:height, :width]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            image = ground.copy()
            left = (i * 3 + seed * 7) % (width - 16)
            image[height // 3 : height // 3 + 16, left : left + 16] = (250, 200, 40)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def write_counter(folder: Path, target: str, batch: int = 1) -> Path:
    """A stream artefact whose answer is [how many frames so far, the sum of their mean values]: what a recurrence is seen by."""
    import onnx
    from onnx import TensorProto, helper

    def value(name: str, kind: int, shape: list[int]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    nodes = [
        helper.make_node("Cast", ["frames"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["value"]),
        helper.make_node("Concat", ["one", "value"], ["new"], axis=1),
        helper.make_node("Add", ["past", "new"], ["past_next"]),
        helper.make_node("Identity", ["past_next"], ["action"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("shape", TensorProto.INT64, [2], [batch, 1]),
        helper.make_tensor("one", TensorProto.FLOAT, [batch, 1], [1.0] * batch),
    ]
    graph = helper.make_graph(
        nodes, "counter",
        [value("frames", TensorProto.UINT8, [batch, SIZE, SIZE, 3]), value("past", TensorProto.FLOAT, [batch, 2])],
        [value("action", TensorProto.FLOAT, [batch, 2]), value("past_next", TensorProto.FLOAT, [batch, 2])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    parts = manifest(
        target, mode="stream",
        input={"shape": [batch, SIZE, SIZE, 3], "states": [{"name": "past", "shape": [batch, 2], "dtype": "float32"}]},
        outputs=[{"name": "action", "head": "action", "classes": 2}], labels={"action": ["frames", "light"]},
    )  # fmt: skip
    with new_artifact(folder, parts) as aside:
        onnx.save(model, aside / "model.onnx")
        if target == "openvino":
            import openvino as ov

            ov.save_model(ov.convert_model(aside / "model.onnx"), aside / "model.xml", compress_to_fp16=False)
            (aside / "model.onnx").unlink()
    return folder
