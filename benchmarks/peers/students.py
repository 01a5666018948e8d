"""A run's student as one would use it elsewhere: normalised float `[1, 3, T, H, W]` in, in torch or as a plain ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def open_torch(run: Path, threads: int, compiled: bool = False) -> tuple[Any, Any]:
    """(callable, its ModelInfo); torch keeps to `threads`."""
    import torch

    from dtkd_edge.models.saved import load_model

    torch.set_num_threads(threads)
    model, _ = load_model(run / "student")
    return torch.compile(model) if compiled else model, model.info


def normalised(frames: NDArray[np.uint8], mean: NDArray[np.float32], std: NDArray[np.float32]) -> NDArray[np.float32]:
    """uint8 `[T, H, W, 3]` → float `[1, 3, T, H, W]`, as every numpy pipeline does it."""
    clip = (frames.astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(clip.transpose(3, 0, 1, 2)[None])


def open_plain_onnx(run: Path, threads: int) -> tuple[Any, Any]:
    """(ONNX Runtime session, ModelInfo) of `torch.onnx.export(model, float clip)`, nothing else in the graph."""
    import onnxruntime as ort
    import torch

    model, info = open_torch(run, threads)
    example = torch.zeros(1, 3, info.frames, info.size, info.size)
    program = torch.onnx.export(model, (example,), dynamo=True, verbose=False)
    assert program is not None
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    return ort.InferenceSession(program.model_proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]), info


def constants(info: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.asarray(info.mean, np.float32), np.asarray(info.std, np.float32)
