"""int8 and its accuracy gate, on networks that quantise well, and on ones that on purpose do not: in one block, or in all."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from export_runs import CLASSES, make_card, teach, write_run

from dtkd_edge.artifact import Artifact, unfinished
from dtkd_edge.deploy.backends import Backend, open_backend
from dtkd_edge.errors import DataError, UsageError, VerificationError
from dtkd_edge.export import build, clips, graph, qdq, targets
from dtkd_edge.export.accuracy import Gate, paired
from dtkd_edge.export.clips import Calibration
from dtkd_edge.export.command import export
from dtkd_edge.export.golden import reference_run
from dtkd_edge.export.int8 import Int8
from dtkd_edge.models import VideoModel, create_model
from dtkd_edge.models.saved import load_model, save_model
from dtkd_edge.runs import run_artifacts
from dtkd_edge.video import read_input

EIGHT = [f"class {i}" for i in range(8)]
SIZE, WORST = 32, 3e4
# A second head, which says the same of every clip: nothing can make it lose.
STEADY = ["cup", "pan"]


def keep_steady(model: VideoModel, head: str) -> None:
    linear = dict(model.named_modules())[f"head.linear.{head}"]
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor([1.0, 0.0]))


def spoil(model: VideoModel, blocks: int) -> VideoModel:
    """The same function, but in the first `blocks` blocks one channel between two convolutions is WORST times too large, so that
    the others are all rounded to zero in int8 (one scale per tensor)."""
    found = [m for m in model.modules() if hasattr(m, "depth")]
    with torch.no_grad():
        for block in found[:blocks]:
            norm, project = block.depth[1], block.project[0]  # a ReLU between them leaves scales alone
            norm.weight[0] *= WORST
            norm.bias[0] *= WORST
            project.weight[:, 0] /= WORST
    return model


def quantizer(
    folder: Path, blocks: int, max_drop: float, target: str = "onnx", head: str = "action", steady: str = ""
) -> tuple[Int8, onnx.ModelProto, Backend]:
    """Eight patterns of colours under noise, which the float32 network tells apart; a third of the clips to calibrate on.

    head: which learns them; steady: the name of a second one, which always gives the same label, rightly.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 8
    patterns = rng.integers(40, 216, (8, 1, 2, 2, 3)).repeat(SIZE // 2, 2).repeat(SIZE // 2, 3)
    frames = (patterns[labels] + rng.integers(-30, 31, (96, 8, SIZE, SIZE, 3))).astype(np.uint8)
    torch.manual_seed(0)
    names = {head: EIGHT, **({steady: STEADY} if steady else {})}
    model = create_model("tsm_tiny", {name: len(classes) for name, classes in names.items()}, size=SIZE).eval()
    teach(model, frames, labels)
    if steady:
        keep_steady(model, steady)
    spoil(model, blocks)
    card = make_card(model, names)
    proto = graph.to_onnx(model, card, folder / "model.onnx")
    manifest = build.new_manifest(folder, model, card, targets.request(target, "int8"))
    backend = open_backend(
        unfinished(folder, manifest.model_copy(update={"precision": "fp32"}), target="onnx"), device="cpu", threads=1
    )
    own = {name: labels if name == head else np.zeros_like(labels) for name in names}
    gate = Gate(frames[32:], {name: of[32:] for name, of in own.items()}, max_drop, backend.run_clips(frames[32:]))
    return Int8(Calibration(frames[:32], 0, ""), gate, backend, manifest), proto, backend


def test_the_layers_that_cost_too_much_are_left_out_and_named(tmp_path: Path) -> None:
    int8, proto, backend = quantizer(tmp_path, blocks=1, max_drop=20)
    with backend:
        quantized = int8.onnx(proto)
        made, part = int8.manifest.quantization, int8.manifest.accuracy
        int8.gate.max_drop = 100  # the same again, with a gate that lets everything through
        int8.onnx(proto)
        assert int8.manifest.accuracy is not None and int8.manifest.accuracy.drop > 20  # needed, and what it bought
    assert made is not None and part is not None and part.passed and part.top1_reference == 1
    layers = [node.name for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]
    assert 0 < len(made.kept) <= len(layers) // 2 and set(made.kept) <= set(layers)
    makers = {name: node.op_type for node in quantized.graph.node for name in node.output}
    for node in quantized.graph.node:
        if node.op_type == "Conv":
            assert (makers.get(node.input[1]) == "DequantizeLinear") == (node.name not in made.kept)


@pytest.mark.parametrize(("head", "steady"), [("noun", "verb"), ("verb", "noun")])
def test_the_head_that_loses_most_is_judged(tmp_path: Path, head: str, steady: str) -> None:
    """In the mean over both heads, or by the other alone, this drop of one head would hold the gate."""
    int8, proto, backend = quantizer(tmp_path, blocks=99, max_drop=60, head=head, steady=steady)
    gate = int8.gate
    with backend:
        quantized = qdq.Quantizer(proto, clips.feeds(backend, int8.calibration.frames)).quantize()
    graph.save_onnx(quantized, tmp_path / "model.onnx")
    with open_backend(unfinished(tmp_path, int8.manifest, target="onnx"), device="cpu", threads=1) as backend:
        part, got = gate.measure(backend), backend.run_clips(gate.frames)
    assert part.head == head and part.drop > 60 and not part.passed
    alone = paired({steady: gate.labels[steady]}, gate.reference, got, 60)
    assert alone.drop == 0 and alone.passed and alone.top1 == 1


@pytest.mark.slow
def test_openvino_leaves_them_out_too(tmp_path: Path) -> None:
    """NNCF's accuracy control is told of the head that loses most, though it may be another one after each layer left out."""
    from dtkd_edge.export import openvino

    int8, _, backend = quantizer(tmp_path, blocks=1, max_drop=20, target="openvino", head="verb", steady="noun")
    with backend:
        whole = openvino.convert(tmp_path / "model.onnx")
        int8.openvino(whole)
    for right in (int8.gate.labels["noun"], 1 - int8.gate.labels["noun"]):  # of the steady head: all, then none
        int8.gate.labels["noun"] = right
        score, each = int8._score(ov.Core().compile_model(whole, "CPU"), list(range(64)))
        # float32 (or bf16) beside itself: nothing is lost, however few are right
        assert abs(score - 1) <= 0.04 and len(each) == 64
    int8.gate.reference["noun"] = int8.gate.reference["noun"][:, ::-1]  # as if float32 had been right where this is wrong
    assert int8._score(ov.Core().compile_model(whole, "CPU"), list(range(64)))[0] == 0
    made, part = int8.manifest.quantization, int8.manifest.accuracy
    assert made is not None and part is not None
    assert part.passed and 0 < len(made.kept) < made.layers


def test_a_network_that_quantises_well_stays_whole(tmp_path: Path) -> None:
    int8, proto, backend = quantizer(tmp_path, blocks=0, max_drop=1)
    with backend:
        int8.onnx(proto)
    assert int8.manifest.accuracy is not None and int8.manifest.accuracy.passed
    assert int8.manifest.quantization is not None and int8.manifest.quantization.kept == []


@pytest.fixture(scope="module")
def spoiled(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two heads on the shared videos. The one is labelled by what its float32 network says of them, and int8 makes it
    lose nearly all of that; the other is right in any precision."""
    data = shutil.copytree(videos, tmp_path_factory.mktemp("labelled") / "videos")
    labels = {"noun": STEADY, "verb": list(CLASSES)}
    folder = write_run(tmp_path_factory.mktemp("runs") / "spoiled", data, labels=labels)
    model, card = load_model(folder / "student")
    paths = sorted(data.rglob("*.mp4"))
    keep_steady(model, "noun")
    margin = np.diff(reference_run(model)(np.concatenate([read_input(p, card.preprocess) for p in paths]))["verb"])[:, 0]
    with torch.no_grad():
        dict(model.named_parameters())["head.linear.verb.bias"][0] += float(np.median(margin))
    save_model(folder / "student", spoil(model, 99), card)
    lines = [f"{p.relative_to(data)},cup,{CLASSES[int(m > np.median(margin))]}\n" for p, m in zip(paths, margin, strict=True)]
    for name in ("train.csv", "val.csv"):
        (data / name).write_text("path,label.noun,label.verb\n" + "".join(lines))
    return folder


def test_a_gate_that_nothing_saves_is_exit_5_and_the_artefact_is_kept_and_marked(
    spoiled: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(VerificationError, match=r": verb top-1 drops by .* points on 38 clips, 5 are allowed") as caught:
        export(spoiled, precision="int8", max_drop=5)
    assert caught.value.exit_code == 5 and "--max-drop" in caught.value.hint
    kept = Artifact.open(spoiled / "export" / "onnx-int8").manifest
    assert kept.verify is not None and not kept.verify.passed
    assert kept.accuracy is not None and kept.accuracy.drop > 5 and kept.accuracy.top1_reference == 1
    assert kept.accuracy.head == "verb" and "verb top-1 " in capsys.readouterr().err


def test_auto_leaves_out_what_fails_the_gate_and_names_the_fastest(
    spoiled: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "say_what_is_faster", lambda *_: pytest.fail("auto advised to take --precision auto"))
    folder = export(spoiled, precision="auto", max_drop=5)
    manifest = Artifact.open(folder).manifest
    assert manifest.accuracy is not None and manifest.accuracy.passed
    words = capsys.readouterr().err
    assert "int8: left out: " in words
    assert "fp32: " in words and "points from float32's (100.0% → 100.0%" in words  # the gate's word is said of floats too
    assert f"fastest that holds the gate: {manifest.effective_precision}, {folder}" in words
    assert run_artifacts(spoiled)[-1] == folder  # what predict and demo take; int8 was made after it


def test_too_few_calibration_clips(spoiled: Path, tmp_path: Path) -> None:
    lines = (spoiled / "recipe.yaml").read_text()
    root = Path(lines.partition("root: ")[2].partition("}")[0])
    few = shutil.copytree(root, tmp_path / "few")
    (few / "train.csv").write_text("".join((root / "train.csv").read_text().splitlines(keepends=True)[:20]))
    with pytest.raises(DataError, match=f"19 usable training clips in {few}, calibration needs 32 or more") as caught:
        export(spoiled, precision="int8", out=tmp_path / "out", overrides=[f"data.root={few}"])
    assert "--set data.root" in caught.value.hint and not (tmp_path / "out").exists()


def test_a_float_precision_is_neither_calibrated_nor_gated(run: Path) -> None:
    with pytest.raises(UsageError, match="--max-drop: fp32 is neither"):
        export(run, max_drop=1)


def test_paired_drop_by_hand() -> None:
    """10 clips; float32 is right on 8; int8 loses 3 of those and wins 1 of the others: 2 points in 10, from 4 differing clips."""
    labels = np.zeros(10, np.int64)
    before = np.eye(2, dtype=np.float32)[[0] * 8 + [1] * 2]
    after = np.eye(2, dtype=np.float32)[[1] * 3 + [0] * 5 + [0] + [1]]
    part = paired({"action": labels}, {"action": before}, {"action": after}, 1.0)
    assert (part.top1_reference, part.top1, part.clips) == (0.8, 0.6, 10)
    assert part.drop == pytest.approx(20) and not part.passed
    lost = np.array([1] * 3 + [0] * 5 + [-1, 0])
    assert part.stderr == pytest.approx(100 * lost.std(ddof=1) / 10**0.5)
    after[0] = np.nan
    assert paired({"action": labels}, {"action": before}, {"action": after}, 1.0).top1 == 0.6
