"""X3D over frames is X3D: logits, clips of a batch that must not see each other, and what the onnx target makes of it."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from export_runs import make_card, trained

from dtkd_edge.export import build, graph, targets
from dtkd_edge.export.frames import BLOCK, over_frames
from dtkd_edge.models import VideoModel, create_model
from dtkd_edge.models.base import fit_clip
from dtkd_edge.models.x3d import X3D

LABELS = {"verb": ["take", "put", "open"], "noun": ["cup", "pan"]}
FRAMES, SIZE = 5, 32


HEADS = {head: len(names) for head, names in LABELS.items()}


@pytest.fixture(scope="module")
def x3d() -> VideoModel:
    torch.manual_seed(0)
    return trained(create_model("x3d_xs", HEADS, frames=FRAMES, size=SIZE))


def clips(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, FRAMES, SIZE, SIZE, 3), dtype=np.uint8)


@torch.no_grad()
def logits(model: VideoModel, frames: np.ndarray) -> dict[str, np.ndarray]:
    return {head: value.numpy() for head, value in model(fit_clip(torch.from_numpy(frames), model.info)).items()}


def test_the_same_logits_for_every_clip_of_a_batch(x3d: VideoModel) -> None:
    frames = clips(3)
    got, want = logits(over_frames(x3d), frames), logits(x3d, frames)
    assert list(got) == list(LABELS)
    for head, value in want.items():
        assert value.std() > 1e-3  # the clips differ, so that one that leaks into another shows
        np.testing.assert_allclose(got[head], value, atol=2e-5 * max(1, np.abs(value).max()))


@pytest.mark.parametrize("frames", [2, FRAMES])  # fewer than the stem's convolution looks back, and as many
def test_a_causal_one_has_its_own_logits(frames: int) -> None:
    model = trained(create_model("x3d_xs", HEADS, frames=frames, size=SIZE, causal=True))
    video = clips(2)[:, :frames]
    got, want = logits(over_frames(model), video), logits(model, video)
    for head, value in want.items():
        np.testing.assert_allclose(got[head], value, atol=2e-5 * max(1, np.abs(value).max()))


def test_the_model_itself_is_left_alone(x3d: VideoModel) -> None:
    before = {name: value.clone() for name, value in x3d.state_dict().items()}
    over_frames(x3d)
    assert all(torch.equal(value, x3d.state_dict()[name]) for name, value in before.items())


def test_other_networks_stay_as_they_are() -> None:
    model = create_model("tsm_tiny", 2)
    assert over_frames(model) is model


def test_the_onnx_target_has_it_and_the_others_keep_3d(x3d: VideoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, kept = make_card(x3d, LABELS), set()
    for target in targets.TARGETS:
        request = targets.request(target)
        monkeypatch.setattr(graph, "to_onnx", lambda model, *_, name=target, **__: kept.add((name, isinstance(model, X3D))))
        build.trace(x3d, card, request, tmp_path, build.new_manifest(tmp_path, x3d, card, request))
    assert kept == {(target, target != "onnx") for target in targets.TARGETS}


@pytest.mark.slow
def test_the_graph_has_2d_convolutions_in_whole_blocks_of_channels(x3d: VideoModel, tmp_path: Path) -> None:
    proto = graph.to_onnx(over_frames(x3d), make_card(x3d, LABELS), tmp_path / "model.onnx", dynamic_batch=True)
    weights = {t.name: list(t.dims) for t in proto.graph.initializer}
    shapes = [weights[node.input[1]] for node in proto.graph.node if node.op_type == "Conv"]
    windows = [shape for shape in shapes if max(shape[2:]) > 1]
    assert windows and {len(shape) for shape in windows} == {4}
    assert all(channels % BLOCK == 0 for channels, width, *_ in shapes if width == 1)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for n in (1, 3):
        got, want = session.run(["noun"], {"frames": clips(n)})[0], logits(x3d, clips(n))["noun"]
        np.testing.assert_allclose(got, want, atol=1e-4 * max(1, np.abs(want).max()))
