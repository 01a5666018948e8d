"""The side-by-side scripts run and compare what they say they compare; how long anything takes is not looked at."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks import overlap
from dtkd_edge.benchmarks.peers import benchmark_app, eager, overhead, pipelines, plain_onnx
from dtkd_edge.benchmarks.peers.students import constants, normalised, open_torch
from dtkd_edge.errors import DataError, VideoError
from dtkd_edge.video import read_input

BRIEF = ["--seconds", "0.01", "--queries", "4"]
ROW = re.compile(
    r"^(\S.*?) +median +[\d.,]+ ms  \([\d.,]+–[\d.,]+ for the middle half, n=\d+\)  [\d.]+ × \([\d.]+–[\d.]+\)", re.M
)


@pytest.fixture(scope="module")
def run(
    torch_graph: Any, onnx_artifact: Path, openvino_artifact: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run folder with the very student that is in its exports."""
    from dtkd_edge.models.saved import ModelCard, save_model

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    for artifact in (onnx_artifact, openvino_artifact):
        shutil.copytree(artifact, folder / "export" / artifact.name)
    manifest = Artifact.open(onnx_artifact).manifest
    info = torch_graph.net.info
    card = ModelCard(
        version="0", model="tsm_tiny", frames=info.frames, stride=1, size=info.size, labels=manifest.labels,
        preprocess=manifest.preprocess,
    )  # fmt: skip
    save_model(folder / "student", torch_graph.net, card)
    recipe = f"name: tiny\nstudent: {{model: tsm_tiny}}\ndata: {{kind: folder, root: {videos}, val_share: 0.4}}\n"
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return folder


def rows(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was compared, in the order printed."""
    return ROW.findall(capsys.readouterr().out)


def test_torch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eager.main([str(run), *BRIEF])
    assert rows(capsys) == ["onnx-fp32", "openvino-fp32", "torch eager"]


@pytest.mark.slow
def test_torch_compile(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eager.main([str(run), "--compile", *BRIEF])
    assert rows(capsys)[-1] == "torch.compile"


def test_a_plain_export_says_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain_onnx.main([str(run), *BRIEF])
    out = capsys.readouterr().out
    assert float(re.findall(r"logits: (\S+)", out)[0]) < 1e-3
    assert ROW.findall(out) == ["onnx-fp32", "plain, numpy normalisation", "plain, graph alone"]


def test_benchmark_app(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_app.main([str(run / "export" / "openvino-fp32"), "--pairs", "1", "--seconds", "1"])
    assert re.fullmatch(r"ours [\d.]+ ms, benchmark_app [\d.]+ ms, ratio .*1 pairs\)\n", capsys.readouterr().out)


def test_overhead(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overhead.main([str(run / "export" / "openvino-fp32"), "--pairs", "1", "--seconds", "0.01"])
    out = capsys.readouterr().out
    assert "bare loop around the backend" in out and "bare loop around OpenVINO's request" in out


def test_pipelines_see_nearly_the_same_clip(run: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = Artifact.open(run / "export" / "onnx-fp32")
    spec, video = artifact.manifest.preprocess, videos / "up" / "0.mp4"
    _, info = open_torch(run, 1)
    mean, std = constants(info)
    ours, other = (normalised(read_input(path, spec)[0], mean, std) for path in (video, videos / "up" / "1.mp4"))
    near = np.abs(other - ours).mean() / 3  # half a pixel of crop, another filter
    theirs = pipelines.torchvision_clip(video, spec, pipelines.torchvision_transform(spec, info)).numpy()
    assert theirs.shape == ours.shape and np.abs(theirs - ours).mean() < near
    pipelines.main([str(run), str(video), *BRIEF])
    found = rows(capsys)
    assert found == ["ours, onnx-fp32", "ours, openvino-fp32", "torchvision's reference", "mmaction2's pipeline"]
    assert np.abs(pipelines.mmaction_clip(video, spec, mean, std) - ours).mean() < near


def test_a_run_without_exports_is_said(run: Path) -> None:
    with pytest.raises(SystemExit, match="nothing exported"):
        pipelines.main([str(run.parent), *BRIEF])


def test_overlap_of_decoding_and_inference(run: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = str(run / "export" / "onnx-fp32")
    overlap.main([artifact, str(videos / "up"), "--videos", "8", "--repeats", "3", "--decoders", "1", "--threads", "1"])
    rate = r"[\d.]+ videos/s +[\d.]+ of \d+ cores\n"
    said = (
        rf"decode +{rate}inference +{rate}predict +{rate}predict reaches [\d.]+ of .*3 repetitions\)\nat most [\d.]+ is possible"
    )
    assert re.match(said, capsys.readouterr().out)
    assert overlap.limit((1.0, 2.0), (1.0, 2.0), 2, 1000) == pytest.approx(0.5, abs=0.01)  # each alone fills both cores
    assert overlap.limit((0.5, 0.5), (1.0, 1.0), 2, 10) == pytest.approx(
        1 / 1.05
    )  # a core each: only the first clip is waited for
    with pytest.raises(DataError, match="no videos there"):
        overlap.main([artifact, str(run / "export")])
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        overlap.main([artifact, str(videos / "left" / "broken.mp4")])
