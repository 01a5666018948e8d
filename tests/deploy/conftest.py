"""One tiny real artefact per target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_cases import CLASSES, FRAMES, SIZE, manifest

from dtkd_edge.artifact import Artifact, new_artifact


@pytest.fixture(scope="session")
def torch_graph() -> Any:
    """The torch model behind the artefacts: uint8 frames [N, T, H, W, 3] → logits [N, K]."""
    import torch

    from dtkd_edge.models import create_model

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = create_model("tsm_tiny", CLASSES, size=SIZE)

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            clips = frames.permute(0, 4, 1, 2, 3).float() / 255
            return self.net((clips - 0.45) / 0.225)["action"]

    torch.set_num_threads(1)
    torch.manual_seed(0)
    graph = Graph()
    for module in graph.modules():  # batch statistics that are not the trivial ones, and logits that differ
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, 0, 1.0)
    return graph.eval()


@pytest.fixture(scope="session")
def onnx_artifact(torch_graph: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("artefacts") / "onnx-fp32"
    with new_artifact(folder, manifest("onnx", batch=-1)) as aside:
        example = torch.zeros(2, FRAMES, SIZE, SIZE, 3, dtype=torch.uint8)
        torch.onnx.export(
            torch_graph, (example,), aside / "model.onnx", dynamo=True, external_data=False, verbose=False,
            input_names=["frames"], output_names=["action"], dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def openvino_artifact(onnx_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import openvino as ov

    folder = tmp_path_factory.mktemp("artefacts") / "openvino-fp32"
    model = ov.convert_model(Artifact.open(onnx_artifact).file(".onnx"), input=[("frames", [1, FRAMES, SIZE, SIZE, 3])])
    with new_artifact(folder, manifest("openvino", batch=1)) as aside:
        ov.save_model(model, aside / "model.xml", compress_to_fp16=False)
    return folder


@pytest.fixture(scope="session")
def clips() -> np.ndarray:
    """uint8 [3, T, H, W, 3]; smooth in space, so that scaling does not turn it into grey."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (3, FRAMES, 5, 5, 3), dtype=np.uint8)
    return coarse.repeat(SIZE // 5, 2).repeat(SIZE // 5, 3)
