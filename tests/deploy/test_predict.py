"""Videos to labels, in Python and on the command line, with real files."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_cases import LABELS, edit_manifest, write_mp4
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import dtkd_edge
import dtkd_edge.errors
from dtkd_edge.deploy.classifier import softmax
from dtkd_edge.deploy.command import predict_all
from dtkd_edge.errors import ArtifactError, UsageError, VideoError
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.video import read_clip


@given(arrays(np.float32, array_shapes(min_dims=1, max_dims=2), elements=st.floats(-1e4, 1e4, width=32)))
def test_softmax_is_a_distribution_in_the_order_of_the_logits(logits: np.ndarray) -> None:
    p = softmax(logits)
    assert np.isfinite(p).all() and (p >= 0).all()
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-5)
    assert (np.take_along_axis(p, logits.argmax(-1)[..., None], -1)[..., 0] == p.max(-1)).all()


def test_a_file_gives_what_its_frames_give(onnx_artifact: Path, torch_graph: Any, tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=30, size=(64, 48))
    with dtkd_edge.load(onnx_artifact, device="cpu", threads=1) as classifier:
        prediction = classifier.predict(video)
        preprocess: Preprocess = classifier.preprocess
    frames = preprocess.frames(read_clip(video, preprocess.sampling))
    import torch

    with torch.inference_mode():
        want = torch_graph(torch.from_numpy(frames[None])).softmax(-1)[0].numpy()
    got = {score.label: score.score for score in prediction.heads["action"]}
    np.testing.assert_allclose([got[label] for label in LABELS], want, atol=1e-4)
    scores = [score.score for score in prediction.top(8)]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1, abs=1e-4)
    assert prediction.label == LABELS[int(want.argmax())] and prediction.score == pytest.approx(want.max(), abs=1e-4)
    assert len(prediction.to_json(top=3)["heads"]["action"]) == 3


def test_frames_in_memory(onnx_artifact: Path) -> None:
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (20, 60, 80, 3), dtype=np.uint8)
    with dtkd_edge.load(onnx_artifact) as classifier:
        whole = classifier.predict(frames)
        picked = classifier.predict(frames[classifier.preprocess.sampling.indices(20)[0]])
        assert whole == picked
        one = classifier.predict(frames[:1])  # shorter than the clip: the frame is repeated
        assert len(one.top(8)) == 8
        for wrong in (frames[0], frames.astype(float), frames[:0], frames[..., :2]):
            with pytest.raises(UsageError, match="frames are"):
                classifier.predict(wrong)  # type: ignore[arg-type]


def test_load_takes_the_newest_artefact_of_a_run_that_opens_here(
    onnx_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import os
    import shutil

    run = tmp_path / "run"
    shutil.copytree(onnx_artifact, run / "export" / "onnx-fp32")
    (run / "recipe.yaml").write_text("{}")
    newer = run / "export" / "tensorrt-fp16"
    shutil.copytree(onnx_artifact, newer)
    edit_manifest(newer, target="tensorrt")
    os.utime(newer / "manifest.json", (2e9, 2e9))
    with dtkd_edge.load(run) as classifier:
        assert classifier.artifact.folder.name == "onnx-fp32"
        assert str(classifier).startswith(f"{classifier.artifact.folder}: tsm_tiny, onnxruntime on ")
    assert capsys.readouterr().err.startswith("passed over: ")  # never another model without a word
    with pytest.raises(dtkd_edge.errors.DtkdEdgeError):  # by name it is not passed over
        dtkd_edge.load(newer)
    with pytest.raises(ArtifactError, match="no artefact here"):
        dtkd_edge.load(tmp_path)


def test_who_runs_an_unverified_artefact_is_told(onnx_artifact: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(onnx_artifact, tmp_path / "onnx-fp32")
    figures = {"reference": "torch", "clips": 1, "max_abs": 9.0, "mean_abs": 9.0, "top1_agreement": 0.0, "tolerance": 1e-4}
    edit_manifest(folder, verify={"passed": False, **figures})
    with dtkd_edge.load(folder, device="cpu") as classifier:
        assert "NOT VERIFIED" in str(classifier)


def cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dtkd_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


def test_predict_command_goes_on_after_broken_videos(openvino_artifact: Path, tmp_path: Path) -> None:
    good = [write_mp4(tmp_path / f"{i}.mp4", frames=12, size=(64, 48), seed=i) for i in range(3)]
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(good[0].read_bytes()[:300])
    empty = tmp_path / "empty.mp4"
    empty.touch()
    result = cli("predict", openvino_artifact, good[0], broken, good[1], empty, tmp_path / "absent.mp4", good[2], "--json")
    assert result.returncode == 3
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["video"] for line in lines] == [str(path) for path in good]
    assert all(line["label"] in LABELS and len(line["heads"]["action"]) == 5 for line in lines)
    for name in ("broken.mp4", "empty.mp4", "absent.mp4"):
        assert any(name in line for line in result.stderr.splitlines())
    assert "3 of 6 videos could not be read" in result.stderr and "Traceback" not in result.stderr


def test_predict_command_for_people(onnx_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    video = write_mp4(tmp_path / "videos" / "wave.mp4", frames=12, size=(64, 48))
    (tmp_path / "without").mkdir()
    result = cli("predict", onnx_artifact, tmp_path / "without", tmp_path / "videos", "--top", "2")  # a folder: its videos
    assert result.returncode == 0 and f"{tmp_path / 'without'}: no video in this folder" in result.stderr, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == str(video) and len(lines) == 3 and "%" in lines[1]
    assert cli("predict", onnx_artifact).returncode == 2
    outer = cli("predict", onnx_artifact, tmp_path)
    assert outer.returncode == 3
    assert f"error: {tmp_path}: no video in this folder; sub-folders are not searched" in outer.stderr
    assert f"  fix: name the folders that hold videos, such as {tmp_path / 'videos'}" in outer.stderr
    mistyped = cli("predict", "nowhere", video, cwd=tmp_path)
    assert mistyped.returncode == 3 and "nowhere: no artefact here" in mistyped.stderr
    assert cli("predict", video, cwd=tmp_path).returncode == 3  # no run below the folder


def test_the_runtime_never_imports_torch(onnx_artifact: Path, tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=12, size=(64, 48))
    code = (
        "import sys, importlib, pkgutil, dtkd_edge, dtkd_edge.deploy as deploy\n"
        "for module in pkgutil.walk_packages(deploy.__path__, 'dtkd_edge.deploy.'): importlib.import_module(module.name)\n"
        f"print(dtkd_edge.load({str(onnx_artifact)!r}).predict({str(video)!r}).label)\n"
        "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() in LABELS


def test_video_errors_are_raised_in_python(onnx_artifact: Path, tmp_path: Path) -> None:
    with dtkd_edge.load(onnx_artifact) as classifier, pytest.raises(VideoError, match=r"nothing\.mp4"):
        classifier.predict(tmp_path / "nothing.mp4")


def test_a_listing_that_ends_early_decodes_no_more(onnx_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [write_mp4(tmp_path / f"{i}.mp4", frames=12, size=(64, 48), seed=i) for i in range(8)]
    with dtkd_edge.load(onnx_artifact) as classifier:
        started, go_on, whole = [], threading.Semaphore(2), classifier.read

        def read(video: Path) -> np.ndarray:
            started.append(video)
            assert go_on.acquire(timeout=30)
            return whole(video)

        monkeypatch.setattr(classifier, "read", read)
        listing = predict_all(classifier, videos, decoders=1)
        assert next(listing)[0] == videos[0]
        threading.Timer(0.3, go_on.release, (len(videos),)).start()  # those that have begun by then go on
        listing.close()
        assert 2 <= len(started) <= 3
