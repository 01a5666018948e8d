"""What goes wrong where nobody looks: the disk fills up, the power goes, the model's folder goes, the picture changes."""

from __future__ import annotations

import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from deploy_cases import until, write_counter, write_mp4
from test_streams import Camera

import dtkd_edge
from dtkd_edge.deploy.camera import Frame, Grabber
from dtkd_edge.deploy.live import Settings
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.recorder import Recorder, cut_to_media
from dtkd_edge.deploy.sources import SourceOptions, open_source
from dtkd_edge.video import Video

QUICK = ("--clip-seconds", "0.4", "--threshold", "0.05")


def demo(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dtkd_edge", "demo", *map(str, arguments), "--view", "none", *QUICK]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def playable(path: Path) -> int:
    """Frames that a player gets out of a file whose end may be missing."""
    import av

    frames = 0
    with av.open(str(path)) as file:
        try:
            for _ in file.decode(video=0):
                frames += 1
        except av.error.InvalidDataError:  # the part that was being written
            pass
    return frames


def test_what_was_recorded_before_the_disk_was_full_can_be_played(onnx_artifact: Path, tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=600, size=(160, 120))
    out, log = tmp_path / "out.mp4", tmp_path / "events.jsonl"
    process = demo(
        onnx_artifact, "--source", video, "--fast", "--record", out, "--events", log,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )  # fmt: skip
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 0 and f"--record {out}: File too large" in said and "Traceback" not in said, said
    assert "600 frames" in said and log.read_text().count("\n") >= 1  # the rest went on
    assert out.stat().st_size <= 60_000 and playable(out) >= 60


def test_a_recording_is_cut_where_its_last_pictures_end(tmp_path: Path) -> None:
    import av

    path = write_parts(tmp_path / "parts.mp4")
    whole = path.read_bytes()
    cut_to_media(path)
    assert path.read_bytes() == whole
    where = [m.start() - 4 for m in re.finditer(b"moof", whole)]
    unreadable = 0
    for end in range(where[2] + 1, whole.index(b"mdat", where[2]), 7):  # all through the third one's index
        path.write_bytes(whole[:end])
        try:
            playable(path)
        except av.error.FFmpegError:
            unreadable += 1
        cut_to_media(path)
        assert path.read_bytes() == whole[: where[2]]
    assert unreadable and playable(path) >= 30
    for end in (0, 5, where[0] + 4):
        path.write_bytes(whole[:end])
        cut_to_media(path)
        assert path.read_bytes() == whole[:end]  # nothing to be kept, nothing to be lost


def write_parts(path: Path) -> Path:
    """150 frames in parts of at most 30, as a recording is written."""
    import av

    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}) as file:
        stream = file.add_stream("libx264", rate=30, options={"g": "30"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(150):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), i, np.uint8), format="rgb24")))
        file.mux(stream.encode())
    return path


def test_a_recorder_that_meets_anything_else_ends_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline: Any = SimpleNamespace(live=None, grabber=Grabber(open_source("pattern")))
    recorder = Recorder(tmp_path / "out.mp4", pipeline)
    recorder.start()
    (take,) = pipeline.grabber.listeners
    pipeline.grabber.source.waits = True  # as a file that is read fast: nothing is left out, so nothing may block
    for number in range(30):
        take(Frame(np.zeros((48, 64), np.uint8), number / 30, number, number / 30))  # grey: no RGB picture
    recorder.stop()
    assert not recorder._thread.is_alive()
    assert "the recording ends here, the rest goes on" in capsys.readouterr().err


def test_a_kill_leaves_a_recording_that_can_be_played(onnx_artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    process = demo(onnx_artifact, "--source", "pattern", "--fps", 60, "--record", out)
    try:
        assert until(lambda: out.is_file() and out.stat().st_size > 10_000)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert playable(out) >= 50


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_the_artefact_is_removed_while_it_runs(target: str, tmp_path: Path) -> None:
    folder = write_counter(tmp_path / "model", target)
    with dtkd_edge.load(folder, device="cpu", threads=1) as classifier:
        pipeline = Pipeline(classifier, Grabber(open_source("pattern")), Settings(clip_seconds=0.4))
        pipeline.start()
        assert until(lambda: pipeline.inferences.count > 2)
        shutil.rmtree(folder)
        labelled = pipeline.inferences.count
        assert until(lambda: pipeline.inferences.count > labelled + 5)
        pipeline.stop()
        assert pipeline.failure() is None


def test_the_picture_changes_its_size_while_it_is_labelled_and_recorded(onnx_artifact: Path, tmp_path: Path) -> None:
    camera = Camera()
    camera.start()
    out = tmp_path / "out.mp4"
    process = demo(onnx_artifact, "--source", f"http://127.0.0.1:{camera.port}/video", "--record", out)
    try:
        assert re.search(r"%", "".join(iter(lambda: process.stderr.read(1), "%")) + "%")  # the first label
        for size in ((96, 128), (101, 77)):
            sent = camera.sent
            camera.size = size
            assert until(lambda sent=sent: camera.sent > sent + 25)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        camera.stop()
    assert process.returncode == 0 and "Traceback" not in said, said
    recording = Video(out)
    assert len(recording) > 3 and recording.read([0, len(recording) - 1]).shape[1:] == (120, 160, 3)


def test_a_file_damaged_to_its_end_ends_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=200, size=(64, 48))
    data = bytearray(video.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4 if data.index(b"moov") > start else len(data)
    middle = (start + end) // 2
    data[middle:end] = b"\xff" * (end - middle)
    video.write_bytes(data)
    grabber = Grabber(open_source(str(video), SourceOptions(fast=True)))
    grabber.start()
    while grabber.running:
        grabber.take()
    assert 0 < grabber.grabbed < 200 and grabber.reconnects == 0 and grabber.error is None
    grabber.stop()
    assert "too many damaged packets; what comes after it is left out" in capsys.readouterr().err
