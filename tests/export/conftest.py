"""A finished run over real video files, shared by this room's tests."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from export_runs import CLASSES, write_run, write_video

from dtkd_edge.export import clips, graph, verify


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _short_timing() -> None:
    """No test here looks at how fast an artefact is; a verdict's latencies are real but short."""
    verify.SECONDS = 0.05


class _ByValue(pickle.Pickler):
    """Tensors by what they hold; torch's own way writes addresses too."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        return tuple, ((str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()),)


def fingerprint(*what: Any) -> str:
    """Of networks and tensors: weights, structure, every attribute."""
    stream = io.BytesIO()
    _ByValue(stream).dump(what)
    return hashlib.sha256(stream.getvalue()).hexdigest()


@pytest.fixture(scope="session", autouse=True)
def _each_trace_once() -> Iterator[None]:
    """Tracing takes most of an export's time here. The same network asked for in the same way is the same graph (test_graph holds
    that), whatever it is converted to: those of this session are kept."""
    kept: dict[Any, bytes] = {}
    real = graph.trace

    def trace(module: torch.nn.Module, example: tuple[Any, ...], *rest: Any, **more: Any) -> onnx.ModelProto:
        # The forward too: a test may have put another one in its place.
        key = type(module).forward, fingerprint(module, example), repr((rest, more))
        if key not in kept:
            kept[key] = real(module, example, *rest, **more).SerializeToString()
        return onnx.ModelProto.FromString(kept[key])

    trace.__wrapped__ = real  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", trace)
        yield


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/{train,val}/class/clip.mp4"""
    root = tmp_path_factory.mktemp("videos")
    for split, count in (("train", clips.FEWEST), ("val", 6)):
        for i in range(count):
            write_video(root / split / CLASSES[i % 2] / f"{i}.mp4", seed=i + (100 if split == "val" else 0))
    return root


@pytest.fixture(scope="session")
def run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "toy", videos)


@pytest.fixture(scope="session")
def causal(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "causal", videos, causal=True)
