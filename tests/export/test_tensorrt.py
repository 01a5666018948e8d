"""The builder and the runner against the real bindings of several TensorRT versions, and on a device where there is one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trt_bindings import bindings

from dtkd_edge.artifact import Artifact
from dtkd_edge.export.command import export


@pytest.mark.parametrize("version", ["10.3.0", pytest.param("10.16.1.11", marks=pytest.mark.slow), "11.4.0.106"])
def test_against_the_real_bindings(version: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name("trt_cases.py"))]
    result = subprocess.run(
        command, env={**os.environ, **bindings(version)}, capture_output=True, text=True, timeout=250, check=False
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_on_the_device(run: Path, precision: str) -> None:
    folder = export(run, target="tensorrt", precision=precision, optimization_level=1)
    manifest = Artifact.open(folder).manifest
    assert manifest.engine_key is not None and manifest.verify is not None and manifest.verify.passed
    assert export(folder, target="tensorrt") == folder  # and again from the folder alone
    export(folder, verify_only=True)
