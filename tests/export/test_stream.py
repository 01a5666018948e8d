from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from export_runs import make_card, trained

from dtkd_edge.artifact import Artifact
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.errors import UsageError
from dtkd_edge.export.command import export
from dtkd_edge.export.stream import to_stream_onnx
from dtkd_edge.models import create_model
from dtkd_edge.models.base import fit_clip

LABELS = {"verb": ["a", "b", "c"], "noun": ["d", "e"]}
HEADS = {"verb": 3, "noun": 2}


@pytest.mark.parametrize("name", ["tsm_tiny", pytest.param("tsm_mobilenetv2_035", marks=pytest.mark.slow)])
def test_frame_by_frame_is_the_causal_clip_model(name: str, tmp_path: Path) -> None:
    model = trained(create_model(name, HEADS, size=32, causal=True))
    to_stream_onnx(model, make_card(model, LABELS, {"causal": True}), tmp_path / "s.onnx", batch=2)
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
