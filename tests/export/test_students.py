"""Every family of students that is no 2-D CNN over frames: ONNX in both float precisions by other input than the traced one, and
the whole way to a verified OpenVINO artefact."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from export_runs import CLASSES, make_card, trained, write_run

from dtkd_edge.artifact import Artifact
from dtkd_edge.export.command import export
from dtkd_edge.export.graph import check_graph, to_onnx
from dtkd_edge.export.precision import to_fp16
from dtkd_edge.export.tensorrt_ops import check_ops
from dtkd_edge.models import VideoModel, create_model
from dtkd_edge.models.base import fit_clip
from dtkd_edge.models.saved import load_model

# name → frames and size: small, because tracing takes as long for any size; the layers are all there
STUDENTS = {"x3d_xs": (2, 32), "slowfast_r50_8x8": (8, 32), "r2plus1d_18": (4, 32), "s3d": (8, 32)}
INT8 = ("x3d_xs", "r2plus1d_18")


def run(proto: onnx.ModelProto, frames: np.ndarray) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"frames": frames}), strict=True))


def assert_exports_in_both_precisions(model: VideoModel, labels: dict[str, list[str]], path: Path) -> None:
    heads = {head: len(names) for head, names in labels.items()}
    shape = (1, model.info.frames, model.info.size, model.info.size, 3)
    video = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    with torch.inference_mode():
        want = {k: v.numpy() for k, v in model(fit_clip(torch.from_numpy(video), model.info)).items()}
    proto = to_onnx(model, make_card(model, labels), path)
    for graph, tolerance in ((proto, 1e-4), (to_fp16(proto), 2e-2)):
        check_graph(graph, heads=heads, shape=list(shape))
        check_ops(graph)
        for head, logits in run(graph, video).items():
            assert want[head].std() > 1e-3
            np.testing.assert_allclose(logits, want[head], atol=tolerance * max(1, np.abs(want[head]).max()))


def test_an_x3d_of_two_heads_exports_in_both_precisions(tmp_path: Path) -> None:
    """Of 13 frames, as published: an odd number."""
    labels = {"verb": ["take", "put", "open"], "noun": ["cup", "pan"]}
    torch.manual_seed(0)
    model = trained(create_model("x3d_s", {head: len(names) for head, names in labels.items()}, frames=13, size=32))
    assert_exports_in_both_precisions(model, labels, tmp_path / "model.onnx")


@pytest.fixture(scope="module")
def run_of(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A finished run of a student, made once."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            frames, size = STUDENTS[name]
            made[name] = write_run(tmp_path_factory.mktemp("runs") / name, videos, name, size, frames, calm=0.3)
        return made[name]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", list(STUDENTS)[1:])
def test_a_student_exports_in_both_precisions(run_of: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    model, _ = load_model(run_of(name) / "student")
    assert_exports_in_both_precisions(model, {"action": list(CLASSES)}, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"), [(name, precision) for name in STUDENTS for precision in ("fp32", *["int8"] * (name in INT8))]
)
def test_a_student_becomes_a_verified_openvino_artefact(run_of: Callable[[str], Path], name: str, precision: str) -> None:
    options = {"max_drop": 100.0} if precision == "int8" else {}  # an untrained network has no accuracy to lose
    folder = export(run_of(name), target="openvino", precision=precision, clips=4, **options)
    manifest = Artifact.open(folder).manifest
    assert manifest.model.name == name and manifest.verify is not None and manifest.verify.passed
    made = manifest.quantization
    if precision == "fp32":
        assert manifest.verify.top1_agreement == 1 and made is None
    else:
        # Depthwise 3-D convolutions, one in each of X3D-XS's 26 blocks, stay in float: in int8, with bfloat16 around them,
        # OpenVINO has no kernel and refuses the whole graph. Nearly all the rest is really int8.
        depthwise, int8 = {"x3d_xs": (26, 52), "r2plus1d_18": (0, 30)}[name]
        assert made is not None and len(made.excluded) >= depthwise and bool(made.excluded) == bool(depthwise)
        assert made.layers - len(made.kept) - len(made.excluded) > int8
