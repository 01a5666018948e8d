"""The builder and the runner against the real bindings of several TensorRT versions, and on a device where there is one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from trt_bindings import bindings

from dtkd_edge.artifact import Artifact
from dtkd_edge.deploy.backends.tensorrt import advice
from dtkd_edge.errors import MissingDependency
from dtkd_edge.export.command import export
from dtkd_edge.export.tensorrt import check_version


@pytest.mark.parametrize("version", ["10.3.0", pytest.param("10.16.1.11", marks=pytest.mark.slow), "11.4.0.106"])
def test_against_the_real_bindings(version: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name("trt_cases.py"))]
    result = subprocess.run(
        command, env={**os.environ, **bindings(version)}, capture_output=True, text=True, timeout=250, check=False
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout


@pytest.mark.parametrize(
    "marks", [{}, {"proc/device-tree/model": "NVIDIA Jetson Orin Nano\0"}, {"etc/nv_tegra_release": "# R36"}]
)
def test_what_is_missing_comes_from_jetpack_on_a_jetson_and_from_pip_elsewhere(tmp_path: Path, marks: dict[str, str]) -> None:
    for name, text in marks.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    for version in ("8.6.2", "10.0.1", "10.2"):
        with pytest.raises(MissingDependency, match=f"TensorRT {version} is too old, 10.3 or newer is needed") as caught:
            check_version(SimpleNamespace(__version__=version), tmp_path)
        assert ("sudo apt install nvidia-jetpack" in caught.value.hint) == bool(marks) != ("pip install" in caught.value.hint)
    check_version(SimpleNamespace(__version__="10.3.0"), tmp_path)
    assert ("sudo apt install python3-libnvinfer" in advice("missing", tmp_path)) == bool(marks)
    assert ('"cuda-python>=12.4,<13"' in advice("no cuda-python", tmp_path)) == bool(marks)
    assert all(("dtkd-edge[tensorrt]" in advice(what, tmp_path)) == (not marks) for what in ("missing", "no cuda-python"))


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_on_the_device(run: Path, precision: str) -> None:
    folder = export(run, target="tensorrt", precision=precision, optimization_level=1)
    manifest = Artifact.open(folder).manifest
    assert manifest.engine_key is not None and manifest.verify is not None and manifest.verify.passed
    assert export(folder, target="tensorrt") == folder  # and again from the folder alone
    export(folder, verify_only=True)
