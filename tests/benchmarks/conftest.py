"""The artefacts of tests/deploy, here too, and a run folder with labelled videos around them."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_deploy = Path(__file__).parents[1] / "deploy"
sys.path.append(str(_deploy))  # its conftest has helpers beside it
_spec = importlib.util.spec_from_file_location("deploy_fixtures", _deploy / "conftest.py")
assert _spec is not None and _spec.loader is not None
deploy_fixtures: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(deploy_fixtures)
torch_graph = deploy_fixtures.torch_graph
onnx_artifact = deploy_fixtures.onnx_artifact
openvino_artifact = deploy_fixtures.openvino_artifact

CLASSES = ["left", "right", "up", "down"]  # four of the artefact's eight


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class with real mp4 files, and one broken file."""
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        for number in range(5):
            path = root / name / f"{number}.mp4"
            path.parent.mkdir(exist_ok=True)
            coarse = rng.integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)
            _write_mp4(path, coarse.repeat(8, 1).repeat(8, 2))
    (root / "left" / "broken.mp4").write_bytes(b"\x00" * 2000)
    return root


def _write_mp4(path: Path, frames: np.ndarray) -> None:
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)


@pytest.fixture
def run_folder(onnx_artifact: Path, openvino_artifact: Path, videos: Path, tmp_path: Path) -> Path:
    """RUN/recipe.yaml, RUN/student.json and RUN/export/{onnx,openvino}-fp32, as train and export leave them."""
    run = tmp_path / "runs" / "tiny"
    (run / "export").mkdir(parents=True)
    for artifact in (onnx_artifact, openvino_artifact):
        shutil.copytree(artifact, run / "export" / artifact.name)
    recipe = f"name: tiny\nstudent: {{model: tsm_tiny}}\ndata: {{kind: folder, root: {videos}, val_share: 0.4}}\n"
    (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (run / "student.json").write_text("{}", encoding="utf-8")
    return run
