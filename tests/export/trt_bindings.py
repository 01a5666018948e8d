"""TensorRT's real Python bindings where its libraries are not: they import over a few stub libraries made with gcc.

The stubs export the handful of C symbols that the bindings link to. Nothing can be built with them, but every class, enumeration
and signature of that TensorRT version is there to hold our code against.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

PACKAGES = {"10.3.0": "tensorrt-cu12-bindings", "10.16.1.11": "tensorrt-cu12-bindings", "11.4.0.106": "tensorrt-cu13-bindings"}
SYMBOLS = {
    "nvinfer": """createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL getPluginRegistry
        getBuilderPluginRegistry""",
    "nvonnxparser": "createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getNvOnnxParserVersion",
    "nvinfer_plugin": "initLibNvInferPlugins",
}
CACHE = Path(os.environ.get("DTKD_EDGE_TEST_CACHE") or Path(tempfile.gettempdir()) / "dtkd-edge-tests")


def bindings(version: str) -> dict[str, str]:
    """The environment variables with which `import tensorrt_bindings` gives that version. Skips, with the reason, without it."""
    place = CACHE / f"tensorrt-{version}-{sys.version_info.major}.{sys.version_info.minor}"
    if not (place / "ready").exists():
        _make(place, version)
    path = [str(place / "python"), os.environ.get("PYTHONPATH", "")]
    return {"LD_LIBRARY_PATH": str(place / "lib"), "PYTHONPATH": os.pathsep.join(p for p in path if p)}


def _make(place: Path, version: str) -> None:
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("gcc is needed to make the stub libraries")
    shutil.rmtree(place, ignore_errors=True)
    (place / "lib").mkdir(parents=True)
    (place / "wheel").mkdir()
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(place / "wheel")]
    result = subprocess.run(
        [*command, f"{PACKAGES[version]}=={version}"], capture_output=True, text=True, check=False, timeout=200
    )
    wheels = list((place / "wheel").glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip() or "no wheel").splitlines()[-1][:120]
        pytest.skip(f"the bindings of TensorRT {version} cannot be downloaded: {reason}")
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(place / "python")
    major = version.partition(".")[0]
    for library, names in SYMBOLS.items():
        code = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in names.split())
        out = place / "lib" / f"lib{library}.so.{major}"
        subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(out)], input=code, text=True, check=True)
    (place / "ready").touch()
