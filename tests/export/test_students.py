"""Every family of students that is no 2-D CNN over frames exports: other input than the traced one, in both precisions."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from export_runs import make_card, trained

from dtkd_edge.export.graph import check_graph, to_onnx
from dtkd_edge.export.precision import to_fp16
from dtkd_edge.export.tensorrt_ops import check_ops
from dtkd_edge.models import create_model
from dtkd_edge.models.base import fit_clip

LABELS = {"verb": ["take", "put", "open"], "noun": ["cup", "pan"]}
HEADS = {head: len(names) for head, names in LABELS.items()}
# name, frames, size: what takes seconds; then what people deploy
STUDENTS = [
    ("x3d_xs", 2, 32),
    ("slowfast_r50_4x16", 8, 32),
    ("r2plus1d_18", 4, 32),
    ("s3d", 8, 32),
    pytest.param("x3d_s", 13, 160, marks=pytest.mark.slow),
    pytest.param("slowfast_r50_8x8", 32, 224, marks=pytest.mark.slow),
    pytest.param("s3d", 32, 256, marks=pytest.mark.slow),
]


def run(proto: onnx.ModelProto, frames: np.ndarray) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"frames": frames}), strict=True))


@pytest.mark.parametrize(("name", "frames", "size"), STUDENTS)
def test_a_student_exports_in_both_precisions(name: str, frames: int, size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = trained(create_model(name, HEADS, frames=frames, size=size))
    shape = (1, frames, size, size, 3)
    video = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    with torch.inference_mode():
        want = {k: v.numpy() for k, v in model(fit_clip(torch.from_numpy(video), model.info)).items()}
    proto = to_onnx(model, make_card(model, LABELS), tmp_path / "model.onnx")
    for graph, tolerance in ((proto, 1e-4), (to_fp16(proto), 2e-2)):
        check_graph(graph, heads=HEADS, shape=list(shape))
        check_ops(graph)
        for head, logits in run(graph, video).items():
            assert want[head].std() > 1e-3
            np.testing.assert_allclose(logits, want[head], atol=tolerance * max(1, np.abs(want[head]).max()))
