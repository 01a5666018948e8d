"""The base install as an edge device has it, and with the runtime extras, from the package index: no torch, and it runs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from deploy_cases import LABELS, write_mp4
from test_packaging import ENV, source  # noqa: F401

from dtkd_edge.video import Video


def run(*command: object, cwd: Path, timeout: float = 250) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_predict_demo_and_doctor_without_torch(
    onnx_artifact: Path,
    openvino_artifact: Path,
    source: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    environment, empty = tmp_path / "env", tmp_path / "empty"
    empty.mkdir()
    assert run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=empty).returncode == 0
    command = environment / "bin/dtkd-edge"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", environment / "bin/python")
    if run(*pip, "download", "--quiet", "--no-deps", "typer", cwd=tmp_path).returncode:
        pytest.skip("no package index within reach")
    # Built once; and modules that nothing imports here need not be compiled.
    built = run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "dist", source, cwd=empty)
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("dtkd_edge-*.whl")
    install = (*pip, "install", "--quiet", "--no-compile", "--only-binary", ":all:")
    installed = run(*install, wheel, cwd=empty, timeout=500)
    assert installed.returncode == 0, installed.stderr
    there = run(*pip, "list", "--format", "freeze", cwd=empty).stdout.lower()
    assert "onnxruntime==" in there and not any(
        f"\n{name}==" in f"\n{there}" for name in ("torch", "av", "opencv-python", "scipy")
    )

    video = write_mp4(tmp_path / "clip.mp4", frames=40, size=(96, 64))
    predicted = run(command, "predict", onnx_artifact, video, cwd=empty)
    assert predicted.returncode == 0 and any(label in predicted.stdout for label in LABELS), predicted.stderr

    options = ("--source", "pattern", "--view", "none", "--clip-seconds", "0.4", "--threshold", "0.05")
    words = [str(word) for word in (command, "demo", onnx_artifact, *options)]
    with subprocess.Popen(words, cwd=empty, env=ENV, stderr=subprocess.PIPE, text=True) as demo:
        try:
            first = next(line for line in demo.stderr if "%" in line)
            assert any(label in first for label in LABELS)
            demo.send_signal(signal.SIGINT)
            said = demo.stderr.read()
            assert demo.wait(60) == 0 and "labels, age p50" in said, said
        finally:
            demo.kill()

    for options in (("--source", "pattern"), ("--source", video, "--view", "none")):  # what the extra brings
        missing = run(command, "demo", onnx_artifact, *options, cwd=empty)
        assert missing.returncode == 4 and 'pip install "dtkd-edge[demo]"' in missing.stderr, missing.stderr
    checked = run(command, "doctor", cwd=empty)
    assert checked.returncode == 0 and "torch is not installed (a device needs none)" in checked.stdout, checked.stdout

    installed = run(*install, f"{wheel}[demo,openvino]", cwd=empty, timeout=500)
    assert installed.returncode == 0, installed.stderr
    there = run(*pip, "list", "--format", "freeze", cwd=empty).stdout.lower()
    assert "openvino==" in there and "\nav==" in there and "\ntorch==" not in there
    for artifact in (onnx_artifact, openvino_artifact):
        look_at_the_page(command, artifact, video, tmp_path)
    recording = Video(tmp_path / "out.mp4")
    assert len(recording) > 3 and recording.read([0]).shape[1:] == (64, 96, 3)


def look_at_the_page(command: Path, artifact: Path, video: Path, folder: Path) -> None:
    """The demo as typed, on the file, with its page: a label and a picture come over the WebSocket; files are finished."""
    from websockets.sync.client import connect

    options = ("--source", video, "--loop", "--port", "0", "--clip-seconds", "0.4", "--threshold", "0.05")
    files = ("--record", folder / "out.mp4", "--events", folder / "events.jsonl")
    words = [str(word) for word in (command, "demo", artifact, *options, *files)]
    with subprocess.Popen(words, cwd=folder / "empty", env=ENV, stderr=subprocess.PIPE, text=True) as demo:
        try:
            url = next(found[0] for line in demo.stderr if (found := re.search(r"http://\S+", line)))
            with urllib.request.urlopen(f"{url}health", timeout=60) as answer:
                assert json.load(answer)["status"] in ("starting", "live")
            with connect(url.replace("http", "ws") + "ws", max_size=None) as page:
                heard, deadline = [page.recv(timeout=60)], time.monotonic() + 60
                while not (any(isinstance(m, bytes) for m in heard) and said_label(heard[-1])):
                    assert time.monotonic() < deadline, heard[-1]
                    heard.append(page.recv(timeout=60))
            demo.send_signal(signal.SIGTERM)
            said = demo.stderr.read()
            assert demo.wait(60) == 0 and "labels, age p50" in said, said
        finally:
            demo.kill()
    assert json.loads((folder / "events.jsonl").read_text().splitlines()[-1])["label"] in LABELS


def said_label(message: str | bytes) -> bool:
    return isinstance(message, str) and json.loads(message).get("held", {}).get("action") in LABELS
