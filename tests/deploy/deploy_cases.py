"""The tiny student's manifest, real mp4 files, and how to wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dtkd_edge.artifact import Artifact, Manifest, new_artifact, now

FRAMES, SIZE, CLASSES = 8, 40, 8
LABELS = ["left", "right", "up", "down", "turn cw", "turn ccw", "zoom in", "zoom out"]


def until(condition: Callable[[], object], seconds: float = 60) -> bool:
    """Whether it comes true. Once it has, it is not asked again: what the page or the camera says may be over a moment later.

    The time only ends a test that hangs; how fast a machine is says nothing."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


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


def write_counter(folder: Path, target: str, batch: int = 1, delay: int = 0) -> Path:
    """A stream artefact whose answer is [how many frames so far, the sum of their mean values]: what a recurrence is seen by.

    delay: frames by which its labels are said to lag behind."""
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
        stream={"delay": delay},
    )  # fmt: skip
    with new_artifact(folder, parts) as aside:
        onnx.save(model, aside / "model.onnx")
        if target == "openvino":
            import openvino as ov

            ov.save_model(ov.convert_model(aside / "model.onnx"), aside / "model.xml", compress_to_fp16=False)
            (aside / "model.onnx").unlink()
    return folder


def write_colours(folder: Path, *, heads: tuple[str, ...] = ("action",)) -> Path:
    """A clip artefact that names the strongest colour of what it sees: its label can be told without it.

    A second head says whether there is more red than blue in it: `warm` or `cold`."""
    import onnx
    from onnx import TensorProto, helper

    labels = dict(zip(heads, (["red", "green", "blue"], ["warm", "cold"]), strict=False))
    outputs = [{"name": head, "head": head, "classes": len(names)} for head, names in labels.items()]
    parts = manifest("onnx", outputs=outputs, labels=labels)
    nodes = [
        helper.make_node("Cast", ["frames"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], [heads[0]]),
        *(helper.make_node("MatMul", [heads[0], "warmth"], [head]) for head in heads[1:]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("scale", TensorProto.FLOAT, [1], [0.1]),
        helper.make_tensor("warmth", TensorProto.FLOAT, [3, 2], [1, -1, 0, 0, -1, 1]),
    ][: 2 + (len(heads) > 1)]
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, [1, FRAMES, SIZE, SIZE, 3])
    logits = [helper.make_tensor_value_info(head, TensorProto.FLOAT, [1, len(names)]) for head, names in labels.items()]
    graph = helper.make_graph(nodes, "colours", [frames], logits, constants)
    with new_artifact(folder, parts) as aside:
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), aside / "model.onnx")
    return folder


def write_film(path: Path, seconds: float = 3.0, fps: int = 10) -> Path:
    """A real h264 file that is red, then green, then blue, with the sides darker: what `write_colours` reads off it is known."""
    import av

    colours = [(200, 40, 40), (40, 170, 60), (40, 60, 190)]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(round(3 * seconds * fps)):
            image = np.empty((240, 320, 3), np.uint8)
            image[:] = colours[int(number / fps / seconds)]
            image[:, 240:] //= 2
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    return path


def to_y4m(video: Path, path: Path) -> Path:
    """What Chromium's --use-file-for-fake-video-capture plays, again and again: the pictures of a video file, not compressed."""
    import av

    with av.open(str(video)) as file:
        stream = file.streams.video[0]
        rate = stream.average_rate
        header = f"YUV4MPEG2 W{stream.width} H{stream.height} F{rate.numerator}:{rate.denominator} Ip A0:0 C420jpeg\n"
        with path.open("wb") as out:
            out.write(header.encode())
            for frame in file.decode(stream):
                planes = frame.reformat(format="yuv420p").to_ndarray()
                out.write(b"FRAME\n" + planes.tobytes())
    return path
