"""The base install as an edge device has it, from the package index into an empty environment: no torch, and it runs."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deploy_cases import LABELS, write_mp4
from test_packaging import ENV, source  # noqa: F401


def run(*command: object, cwd: Path, timeout: float = 250) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_predict_demo_and_doctor_without_torch(onnx_artifact: Path, source: Path, tmp_path: Path) -> None:  # noqa: F811
    environment, empty = tmp_path / "env", tmp_path / "empty"
    empty.mkdir()
    assert run(sys.executable, "-m", "venv", environment, cwd=empty).returncode == 0
    python, command = environment / "bin/python", environment / "bin/dtkd-edge"
    if run(python, "-m", "pip", "download", "--quiet", "--no-deps", "typer", cwd=tmp_path).returncode:
        pytest.skip("no package index within reach")
    installed = run(python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", source, cwd=empty, timeout=500)
    assert installed.returncode == 0, installed.stderr
    there = run(python, "-m", "pip", "list", "--format", "freeze", cwd=empty).stdout.lower()
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
            assert demo.wait(20) == 0 and "labels, age p50" in said, said
        finally:
            demo.kill()

    for options in (("--source", "pattern"), ("--source", video, "--view", "none")):  # what the extra brings
        missing = run(command, "demo", onnx_artifact, *options, cwd=empty)
        assert missing.returncode == 4 and 'pip install "dtkd-edge[demo]"' in missing.stderr, missing.stderr
    checked = run(command, "doctor", cwd=empty)
    assert checked.returncode == 0 and "torch is not installed (a device needs none)" in checked.stdout, checked.stdout
