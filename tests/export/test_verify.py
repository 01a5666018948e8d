"""What verification lets through and what it refuses, whatever the size of the logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_runs import CLASSES, make_card, teach, trained

from dtkd_edge.artifact import Artifact, InputPart, Manifest, ModelPart, OutputPart, VerifyPart, now, unfinished
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.errors import ArtifactError
from dtkd_edge.export import graph, openvino, verify
from dtkd_edge.export.golden import GOLDEN, STORED, Golden, make_golden, scales
from dtkd_edge.export.precision import to_fp16
from dtkd_edge.models import VideoModel, create_model

SIZE = 40
LABELS = {"action": list(CLASSES)}


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """Twelve clips of squares that wander over noise, a red one and a blue one in turn: uint8 `[12, 8, S, S, 3]`."""
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 90, (12, 8, SIZE, SIZE, 3))
    for number, clip in enumerate(frames):
        (y, x), step, strength = rng.integers(0, 16, 2), rng.integers(-2, 3), rng.integers(60, 160)
        for t, frame in enumerate(clip):
            at = int(np.clip(x + step * t, 0, SIZE - 24))
            frame[y : y + 24, at : at + 24, 2 * (number % 2)] += strength
    return frames.astype(np.uint8)


@pytest.fixture(scope="module")
def model(clips: np.ndarray) -> VideoModel:
    """It tells red from blue: its head is the nearest class mean of the features."""
    torch.manual_seed(0)
    model = trained(create_model("tsm_tiny", len(CLASSES), size=SIZE))
    teach(model, clips, np.arange(len(clips)) % 2)
    return model


@pytest.fixture(scope="module")
def traced(model: VideoModel, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return graph.to_onnx(model, make_card(model, LABELS), tmp_path_factory.mktemp("traced") / "model.onnx")


def changed(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """The graph with other values in the weight of that name."""
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    (weight,) = [w for w in other.graph.initializer if w.name == name]
    values = change(onnx.numpy_helper.to_array(weight))
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    return other


STEM, MIDDLE, HEAD = "student.stem.0.weight", "student.stages.stage2.0.project.0.weight", "student.head.linear.action.weight"
GROSS = {
    "channels of the pictures scrambled": (STEM, lambda w: w[:, ::-1]),
    "a normalisation without its mean": ("edge.shift", np.zeros_like),
    "another order of channels in the middle": (MIDDLE, lambda w: np.roll(w, 1, 1)),
    "the same answer for every clip": (HEAD, np.zeros_like),
}
SLIGHT = {"one layer a fiftieth too strong, which bfloat16's rounding hides": (MIDDLE, lambda w: 1.02 * w)}


def artefact(proto: onnx.ModelProto, model: VideoModel, target: str, precision: str, folder: Path) -> Artifact:
    """As `dtkd-edge export` writes it, without its verification."""
    card = make_card(model, LABELS)
    folder.mkdir()
    graph.save_onnx(to_fp16(proto) if precision == "fp16" and target == "onnx" else proto, folder / "model.onnx")
    if target == "openvino":
        openvino.write_ir(openvino.convert(folder / "model.onnx"), folder, precision=precision, entries={})
    manifest = Manifest(
        name="t", created=now(), target=target, precision=precision, effective_precision=precision, preprocess=card.preprocess,
        model=ModelPart(name=card.model, frames=card.frames, stride=card.stride, size=SIZE, parameters=1, macs=1),
        input=InputPart(shape=[1, card.frames, SIZE, SIZE, 3]), labels=card.labels,
        outputs=[OutputPart(name="action", head="action", classes=2)],
    )  # fmt: skip
    return unfinished(folder, manifest)


def verified(artifact: Artifact, golden: Golden, allowed: float | None = None) -> VerifyPart:
    with open_backend(artifact, device="cpu", threads=1) as backend:
        part = verify.compare(backend, golden, artifact.manifest.precision, allowed=allowed)
    verify.add_file(part, artifact, golden)
    return part


def stored(golden: Golden, artifact: Artifact) -> Golden:
    """What --verify-only has: the golden clips as they come off the disk."""
    golden.save(artifact.folder / GOLDEN)
    return Golden.load(unfinished(artifact.folder, artifact.manifest))


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(
    ("target", "precision"), [("onnx", "fp32"), ("onnx", "fp16"), ("openvino", "bf16"), ("openvino", "fp16")]
)
def test_right_ones_pass_and_wrong_ones_do_not_at_any_size_of_the_logits(
    model: VideoModel, traced: onnx.ModelProto, clips: np.ndarray, tmp_path: Path, factor: float, target: str, precision: str
) -> None:
    """The classifier's weights are `factor` times as large; its bias stays."""
    right, larger = changed(traced, HEAD, lambda w: factor * w), copy.deepcopy(model)
    with torch.no_grad():
        larger.head_parameters()[0].mul_(factor)
    golden = make_golden(larger, clips)
    artifact = artefact(right, model, target, precision, tmp_path / "right")
    part = verified(artifact, golden)
    assert part.passed and part.top1_agreement == 1, part
    again = verified(artifact, stored(golden, artifact), allowed=part.tolerance)
    assert again.passed and again.clips == STORED, again
    for number, (what, (name, change)) in enumerate((GROSS if precision == "fp16" else GROSS | SLIGHT).items()):
        artifact = artefact(changed(right, name, change), model, target, precision, tmp_path / str(number))
        wrong = verified(artifact, stored(golden, artifact), allowed=part.tolerance)
        assert not wrong.passed, (what, wrong)


def test_what_an_error_is_measured_by() -> None:
    """The spread of the real clips' logits, whatever they have in common and however far black and white are off."""
    rng = np.random.default_rng(0)
    real = np.arange(103) < 100
    logits = rng.normal(0, 3, (103, 40)).astype(np.float32)
    logits[~real] *= np.array([[0.1], [1], [1000]], np.float32)
    found = scales(logits, real)
    np.testing.assert_allclose(found[:100], 3, rtol=0.4)  # clips far from the mean have their own
    np.testing.assert_allclose(found[100], 3, rtol=0.02)
    np.testing.assert_allclose(found[102], 3000, rtol=0.4)
    np.testing.assert_allclose(scales(1e-3 * logits, real), 1e-3 * found, rtol=1e-5)
    np.testing.assert_allclose(scales(logits + 5, real), found, rtol=1e-5)
    np.testing.assert_allclose(scales(np.full((103, 40), 7, np.float32), real), 0.07, rtol=1e-5)  # no spread at all


@pytest.mark.parametrize(("margin", "counts"), [(0.5, 0), (4.0, 1)])
def test_a_label_that_changes_counts_where_float32_was_sure_of_it(margin: float, counts: int) -> None:
    logits = np.array([[3, -3], [-3, 3], [margin, 0]], np.float32)
    golden = Golden.of(np.zeros((3, 1, 1, 1, 3), np.uint8), np.ones(3, bool), {"action": logits})
    got = {"action": np.array([[3, -3], [-3, 3], [0, margin]], np.float32)}
    assert verify.flips(golden, got, verify.TOLERANCE["bf16"]) == (3, 1, counts)
    assert verify.flips(golden, got, verify.TOLERANCE["fp32"]) == (3, 1, 1)
    assert verify.flips(golden, got, float("1e30")) == (3, 1, 0)  # int8: its accuracy decides


def test_one_clip_alone_may_not_be_far_off(model: VideoModel, traced: onnx.ModelProto, clips: np.ndarray, tmp_path: Path) -> None:
    """Sixty clips are right and one is not: its share in the mean square is small."""
    golden = make_golden(model, np.concatenate([clips] * 5))
    artifact = artefact(traced, model, "onnx", "fp16", tmp_path / "right")
    assert verified(artifact, golden).passed
    golden.logits["action"][7] += 0.3 * golden.scales["action"][7]
    part = verified(artifact, golden)
    assert not part.passed and part.error is not None and part.error < part.tolerance == verify.TOLERANCE["fp16"]
    assert part.reason is not None and "one clip is off by 0.3" in part.reason


def many(classes: int, sure: float = 6.0) -> Golden:
    """64 real clips and three others; each real one has a label, `sure` above what all logits vary by (0: noise alone)."""
    rng, real = np.random.default_rng(2), np.arange(67) < 64
    logits = rng.normal(0, 1, (67, classes)) + rng.normal(0, 0.5, classes)
    logits[np.arange(67), rng.integers(0, classes, 67)] += sure
    return Golden.of(np.zeros((67, 1, 1, 1, 3), np.uint8), real, {"action": logits.astype(np.float32)})


def answers(golden: Golden, logits: np.ndarray, precision: str) -> VerifyPart:
    """What is said of a runtime that answers so."""
    manifest = SimpleNamespace(outputs=[OutputPart(name="action", head="action", classes=golden.logits["action"].shape[1])])
    backend: Any = SimpleNamespace(
        artifact=SimpleNamespace(manifest=manifest), run_clips=lambda frames: {"action": logits.astype(np.float32)}
    )
    return verify.compare(backend, golden, precision)


# Root mean square that right artefacts were measured to be off by.
ROUNDING = {"fp16": 0.023, "bf16": 0.22}


def rounded(golden: Golden, precision: str) -> np.ndarray:
    """Logits as that precision may round them: more in some classes than in others, and more in some clips."""
    rng, logits = np.random.default_rng(3), golden.logits["action"]
    size = np.outer(rng.uniform(0.5, 1.5, len(logits)), rng.uniform(0.5, 1.5, logits.shape[1]))
    noise = size * rng.normal(size=logits.shape) * golden.scales["action"][:, None]
    return logits + noise * ROUNDING[precision] / np.sqrt(np.square(noise / golden.scales["action"][:, None]).mean())


@pytest.mark.parametrize("classes", [2, 40, 400, 700])
@pytest.mark.parametrize("precision", list(ROUNDING))
def test_rounding_passes_and_one_wrong_class_does_not_however_many_there_are(precision: str, classes: int) -> None:
    golden = many(classes)
    right = rounded(golden, precision)
    part = answers(golden, right, precision)
    assert part.passed and part.reason is None and part.error == pytest.approx(ROUNDING[precision], rel=1e-3), part
    row, spread = classes // 2, golden.scales["action"].min()
    dead, shifted, one = right.copy(), right.copy(), right.copy()
    dead[:, row] = 0.1  # its row of the classifier is zero, what is left is its bias
    shifted[:, row] -= spread
    one[5, row] -= 10 * verify.TOLERANCE[precision] * golden.scales["action"][5]
    for wrong in (dead, shifted, one):
        part = answers(golden, wrong, precision)
        assert not part.passed and part.reason is not None, part
        if classes >= 400:  # the mean over classes says nothing of it
            assert part.error is not None and part.error < verify.TOLERANCE[precision]
            assert part.reason.startswith("one logit is off by" if wrong is one else "one class is off by"), part.reason


@pytest.mark.parametrize("classes", [2, 10, 400])
def test_noise_that_changes_many_labels_is_no_rounding(classes: int) -> None:
    """Within the tolerance, and no label changes that float32 was sure of; but a sixth of them and more do."""
    golden = many(classes, sure=0)
    logits, scale = golden.logits["action"], golden.scales["action"]
    noise = np.random.default_rng(4).normal(0, 0.48, logits.shape) * scale[:, None]
    assert not answers(golden, logits + noise, "bf16").passed
    ties = logits.copy()  # a hundredth of a spread between the first two
    first, second = np.argsort(logits, 1)[:, -1], np.argsort(logits, 1)[:, -2]
    rows = np.arange(len(logits))
    ties[rows, second] = ties[rows, first] - 0.01 * scale
    golden = Golden.of(golden.frames, golden.real, {"action": ties})
    for count, passes in ((10, True), (11, False)):  # 15 % of 64, and one clip more
        other = ties.copy()
        other[rows[:count], second[:count]] += 0.02 * scale[:count]
        part = answers(golden, other, "bf16")
        assert part.passed == passes and part.error is not None and part.error < 0.03
        assert part.reason == (None if passes else "11 of 64 top-1 labels change, 10 may")


def test_stored_clips_of_an_earlier_version(model: VideoModel, traced: onnx.ModelProto, tmp_path: Path) -> None:
    artifact = artefact(traced, model, "onnx", "fp32", tmp_path / "earlier")
    golden = Golden.of(np.zeros((3, 8, SIZE, SIZE, 3), np.uint8), np.ones(3, bool), {"action": np.zeros((3, 2), np.float32)})
    arrays = {"frames": golden.frames, "real": golden.real, "logits.action": golden.logits["action"]}
    np.savez_compressed(artifact.folder / GOLDEN, **arrays)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="stored by an earlier version, without the spread of the logits") as caught:
        Golden.load(unfinished(artifact.folder, artifact.manifest))
    assert caught.value.hint == "export the run again"
