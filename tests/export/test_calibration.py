"""Which training clips int8 is calibrated on: how many, drawn by which seed, and what follows from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_runs import CLASSES, make_card, trained

from dtkd_edge.artifact import unfinished
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.export import build, clips, graph, targets
from dtkd_edge.export.accuracy import Gate
from dtkd_edge.export.clips import Calibration, calibration
from dtkd_edge.export.int8 import Int8
from dtkd_edge.models import create_model
from dtkd_edge.preprocess import Preprocess, Sampling
from dtkd_edge.recipe import DataConfig

SIZE = 32
PREPROCESS = Preprocess(resize_short=SIZE, crop=SIZE, sampling=Sampling(frames=8))


@pytest.fixture(scope="module")
def many(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """320 training clips: ten parts of each of the shared videos."""
    paths = sorted((videos / "train").rglob("*.mp4"))
    rows = [f"{path},{path.parent.name},{0.05 * i:.2f},{0.05 * i + 0.8:.2f}\n" for path in paths for i in range(10)]
    root = tmp_path_factory.mktemp("many")
    for name in ("train.csv", "val.csv"):
        (root / name).write_text("path,label,start,end\n" + "".join(rows))
    assert len(rows) == 320
    return DataConfig(kind="csv", root=root, train="train.csv", val="val.csv")


def test_300_clips_by_default_drawn_by_the_seed(many: DataConfig) -> None:
    count = targets.request("onnx", "int8").calibration_clips
    assert count == targets.request("openvino", "int8").calibration_clips == 300
    first = calibration(many, PREPROCESS, count, 0)
    assert first.frames.shape == (300, 8, SIZE, SIZE, 3) and first.seed == 0
    again, other = calibration(many, PREPROCESS, count, 0), calibration(many, PREPROCESS, count, 1)
    assert again.sha256 == first.sha256 and np.array_equal(again.frames, first.frames)
    assert other.sha256 != first.sha256 and not np.array_equal(other.frames, first.frames)


def test_fewer_than_asked_for_are_all_of_them(many: DataConfig, videos: Path, capsys: pytest.CaptureFixture) -> None:
    few = DataConfig(kind="folder", root=videos)
    found = [calibration(few, PREPROCESS, 300, seed) for seed in (0, 1)]
    assert [len(each.frames) for each in found] == [clips.FEWEST, clips.FEWEST]
    assert f"calibrating on {clips.FEWEST} clips, 300 were asked for: there are no more" in capsys.readouterr().err
    sets = [{frames.tobytes() for frames in each.frames} for each in found]
    assert sets[0] == sets[1] and len(sets[0]) == clips.FEWEST  # every one, whatever the seed
    assert len(calibration(many, PREPROCESS, 40, 0).frames) == 40
    assert not capsys.readouterr().err


def steps(proto: onnx.ModelProto) -> dict[str, bytes]:
    """The scales of the quantised graph by name."""
    scales = {node.input[1] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    return {w.name: onnx.numpy_helper.to_array(w).tobytes() for w in proto.graph.initializer if w.name in scales}


def test_the_same_seed_gives_the_same_artefact_and_another_one_other_scales(many: DataConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = trained(create_model("tsm_tiny", len(CLASSES), size=SIZE))
    card = make_card(model, {"action": list(CLASSES)})
    proto = graph.to_onnx(model, card, tmp_path / "model.onnx")
    manifest = build.new_manifest(tmp_path, model, card, targets.request("onnx", "int8"))
    float32 = unfinished(tmp_path, manifest.model_copy(update={"precision": "fp32"}), target="onnx")
    made: list[onnx.ModelProto] = []
    with open_backend(float32, device="cpu", threads=1) as reference:
        for seed in (0, 0, 1):
            drawn: Calibration = calibration(many, PREPROCESS, 32, seed)
            gate = Gate(drawn.frames[:2], {"action": np.zeros(2, np.int64)}, 100, reference.run_clips(drawn.frames[:2]))
            made.append(Int8(drawn, gate, reference, manifest).onnx(proto))
            recorded = manifest.quantization
            assert recorded is not None
            assert (recorded.clips, recorded.seed, recorded.clips_sha256) == (32, seed, drawn.sha256)
    assert made[0].SerializeToString() == made[1].SerializeToString()
    assert steps(made[0]) and steps(made[0]).keys() == steps(made[2]).keys() and steps(made[0]) != steps(made[2])
