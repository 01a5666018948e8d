from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from export_runs import make_card, trained, write_run

from dtkd_edge.artifact import Artifact
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.errors import UsageError
from dtkd_edge.export.command import export
from dtkd_edge.export.stream import to_stream_onnx
from dtkd_edge.models import create_model
from dtkd_edge.models.base import fit_clip

LABELS = {"verb": ["a", "b", "c"], "noun": ["d", "e"]}
HEADS = {"verb": 3, "noun": 2}


def assert_at_most_4d(proto: onnx.ModelProto) -> None:
    """What mobile runtimes take: no tensor between the nodes has five dimensions."""
    known = {value.name: len(value.type.tensor_type.shape.dim) for value in proto.graph.value_info}
    assert known and max(known.values()) <= 4, {name: dims for name, dims in known.items() if dims > 4}


@pytest.mark.parametrize("name", ["tsm_tiny", pytest.param("tsm_mobilenetv2_035", marks=pytest.mark.slow)])
def test_frame_by_frame_is_the_causal_clip_model(name: str, tmp_path: Path) -> None:
    model = trained(create_model(name, HEADS, size=32, causal=True))
    form = model.stream_form().eval()
    assert form.delay == 0 and form.reference(model) is model
    proto = to_stream_onnx(form, make_card(model, LABELS, {"causal": True}), tmp_path / "s.onnx", batch=2)
    assert_at_most_4d(proto)
    session = ort.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), dtype=np.uint8)
    states = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()[1:]}
    for t in range(8):
        out = dict(zip(names, session.run(names, {"frames": frames[:, t], **states}), strict=True))
        states = {state: out[f"{state}_next"] for state in states}
        # Independent statement: the causal clip model over t+1 frames and black past is the mean of their logits.
        part = create_model(name, HEADS, size=32, causal=True, frames=t + 1)
        part.load_state_dict(model.state_dict())
        with torch.no_grad():
            want = part.eval()(fit_clip(torch.from_numpy(frames[:, : t + 1]), part.info))
        for head in HEADS:
            scale = max(1.0, float(want[head].abs().max()))
            np.testing.assert_allclose(out[head], want[head].numpy(), atol=1e-5 * scale)


def test_a_stream_artefact_is_verified_and_keeps_its_states(causal: Path) -> None:
    folder = export(causal, mode="stream")
    artifact = Artifact.open(folder)
    manifest = artifact.manifest
    assert folder.name == "onnx-fp32-stream" and manifest.mode == "stream"
    assert manifest.input.shape == [1, 48, 48, 3] and manifest.input.states
    assert manifest.verify is not None and manifest.verify.passed
    frame = np.full((1, 48, 48, 3), 90, np.uint8)
    with open_backend(artifact, device="cpu") as backend:
        first, second = backend.run(frame)["action"], backend.run(frame)["action"]
        backend.reset()
        assert np.array_equal(backend.run(frame)["action"], first)
        assert not np.allclose(first, second, atol=1e-6)
    export(folder, verify_only=True)


def test_a_bidirectional_student_is_refused_with_the_recipe_line(run: Path) -> None:
    with pytest.raises(UsageError) as caught:
        export(run, mode="stream")
    assert "--set student.options.causal=true" in caught.value.hint
    assert not (run / "export" / "onnx-fp32-stream").exists()


def test_a_stream_has_one_batch_size(causal: Path) -> None:
    with pytest.raises(UsageError):
        export(causal, mode="stream", dynamic_batch=True)


@pytest.fixture(scope="module")
def x3d(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "x3d", videos, name="x3d_xs", size=32)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_x3d_as_it_was_trained_streams_late_and_says_so(x3d: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(x3d, target=target, mode="stream", clips=4)
    artifact = Artifact.open(folder)
    manifest = artifact.manifest
    assert manifest.stream is not None and manifest.delay == 28
    assert manifest.stream.accuracy is not None and manifest.stream.accuracy.clips == 6
    assert manifest.verify is not None and manifest.verify.passed
    said = capsys.readouterr().err
    assert "28 frames" in said and "student.options.causal=true" in said
    # The same for every target: measured once, as long as weights and clips are the same.
    assert ("measured for onnx-fp32-stream" in said) == (target == "openvino")
    assert manifest.stream.accuracy_of is not None
    # The stored logits come from torch, frame by frame with the last one standing still; so does what any reader gets.
    with np.load(folder / "golden.npz") as golden, open_backend(artifact, device="cpu") as backend:
        frames = list(golden["frames"][0])
        for frame in (*frames, *[frames[-1]] * 28):
            out = backend.run(frame[None])["action"]
        np.testing.assert_allclose(out[0], golden["logits.action"][0], atol=2e-3 * golden["scales.action"][0])
        backend.reset()
        assert not np.allclose(backend.run(frames[-1][None])["action"][0], out[0], atol=1e-4)
    export(folder, verify_only=True)


@pytest.mark.slow
def test_a_causal_x3d_streams_as_its_clip_model(videos: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "x3d", videos, name="x3d_xs", size=32, causal=True)
    manifest = Artifact.open(export(run, mode="stream", clips=4)).manifest
    assert manifest.delay == 0 and manifest.stream is not None and manifest.stream.accuracy is None
    assert manifest.verify is not None and manifest.verify.passed


@pytest.mark.slow
def test_no_tensor_of_x3d_frame_by_frame_has_five_dimensions(tmp_path: Path) -> None:
    model = trained(create_model("x3d_xs", HEADS, size=32))
    form = model.stream_form().eval()
    assert_at_most_4d(to_stream_onnx(form, make_card(model, LABELS), tmp_path / "s.onnx"))


def test_what_has_no_form_frame_by_frame_is_refused(videos: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "r2", videos, name="r2plus1d_18", size=32, frames=4)
    with pytest.raises(UsageError) as caught:
        export(run, mode="stream")
    assert "--mode clip" in caught.value.hint
