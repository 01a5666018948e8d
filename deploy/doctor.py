"""`dtkd-edge doctor`: what works on this machine, line by line, and the fix for what does not."""

from __future__ import annotations

import glob
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from dtkd_edge.artifact import Artifact
from dtkd_edge.deploy.backends.devices import cpu_name, nvidia_gpus
from dtkd_edge.errors import DtkdEdgeError, InputError, NotHereError
from dtkd_edge.runs import find_artifacts

MIN_FREE_GB = 2.0
OLDEST_PYTHON = (3, 10)

Mark = Literal["ok", "off", "bad"]


@dataclass(frozen=True)
class Check:
    """ok: works · off: an option that is not here (fix says how to get it) · bad: the runtime core does not work."""

    name: str
    mark: Mark
    words: str
    fix: str = ""


def check_python() -> Check:
    words = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cpu_name()}, {os.cpu_count()} cores"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Check("Python", "bad", words, "use Python 3.10 or newer")
    return Check("Python", "ok", words)


def check_libraries() -> Check:
    """The base dependencies, by importing them: a wheel for another CPU is installed and does not import."""
    names = {"numpy": "numpy", "pydantic": "pydantic", "yaml": "pyyaml", "PIL": "pillow", "decord": "decord2", "rich": "rich"}
    broken = {package: reason for module, package in names.items() if (reason := _import_error(module))}
    if broken:
        first = "; ".join(f"{package}: {reason}" for package, reason in broken.items())
        return Check("libraries", "bad", first, f"pip install {' '.join(broken)}")
    return Check("libraries", "ok", ", ".join(f"{package} {_version(package)}" for package in names.values()))


def check_onnxruntime() -> Check:
    reason = _import_error("onnxruntime")
    if reason:
        return Check("ONNX Runtime", "bad", reason, "pip install onnxruntime")
    import onnxruntime as ort

    names = [name.removesuffix("ExecutionProvider") for name in ort.get_available_providers()]
    return Check("ONNX Runtime", "ok", f"{ort.__version__}: {', '.join(names)}")


def check_openvino() -> Check:
    reason = _import_error("openvino")
    if reason:
        return Check("OpenVINO", "off", reason, 'pip install "dtkd-edge[openvino]"')
    import openvino as ov

    core = ov.Core()
    devices = [f"{name} ({core.get_property(name, 'FULL_DEVICE_NAME')})" for name in core.available_devices]
    return Check("OpenVINO", "ok", f"{_version('openvino')}: {', '.join(devices)}")


def check_nvidia() -> Check:
    gpus = nvidia_gpus()
    if gpus:
        return Check("NVIDIA GPU", "ok", "; ".join(f"{g.name} (compute {g.compute_capability}, driver {g.driver})" for g in gpus))
    release = Path("/etc/nv_tegra_release")
    if release.is_file():
        return Check("NVIDIA GPU", "ok", f"Jetson: {release.read_text().partition(',')[0].lstrip('# ')}")
    return Check("NVIDIA GPU", "off", "none (nvidia-smi finds none)", "needed for TensorRT and CUDA only; the CPU runs the rest")


def check_tensorrt() -> Check:
    from dtkd_edge.deploy.backends.tensorrt import Cuda, current_key, import_tensorrt

    try:
        key = current_key(import_tensorrt(), Cuda(0))
    except NotHereError as error:
        return Check("TensorRT", "off", error.message, error.hint)
    return Check("TensorRT", "ok", f"{key.tensorrt} on {key.gpu}")


def check_camera() -> Check:
    found = sorted(glob.glob("/dev/video*"))  # noqa: PTH207
    unreadable = [path for path in found if not os.access(path, os.R_OK | os.W_OK)]
    if not found:
        return Check("camera", "off", "no /dev/video*", "plug one in; or demo --source pattern, FILE, URL or browser")
    if unreadable:
        return Check(
            "camera", "off", f"no right to open {', '.join(unreadable)}", "sudo usermod -aG video $USER, then log in again"
        )
    return Check("camera", "ok", ", ".join(found))


def check_opencv() -> Check:
    """Optional: the window, and CSI cameras by GStreamer."""
    from dtkd_edge.deploy.sources.device import OPENCV_HOW, has_gstreamer

    reason = _import_error("cv2")
    if reason:
        return Check("OpenCV", "off", f"{reason} (needed for --view window and CSI cameras)", OPENCV_HOW)
    import cv2

    streamer = "with" if has_gstreamer(cv2) else "without"
    fix = "" if streamer == "with" else f"only a Jetson's CSI camera needs it: {OPENCV_HOW.partition('; ')[2]}"
    return Check("OpenCV", "ok", f"{cv2.__version__} {streamer} GStreamer ({Path(cv2.__file__).parent})", fix)


def check_demo() -> Check:
    missing = [name for name in ("av", "starlette", "uvicorn", "websockets") if _import_error(name)]
    if missing:
        return Check("live demo", "off", f"not installed: {', '.join(missing)}", 'pip install "dtkd-edge[demo]"')
    return Check("live demo", "ok", f"av {_version('av')}, uvicorn {_version('uvicorn')}")


def check_training() -> Check:
    """By the installed version alone: importing torch takes seconds."""
    found = _version("torch")
    if not found:
        return Check("training", "off", "torch is not installed (a device needs none)", 'pip install "dtkd-edge[train]"')
    return Check("training", "ok", f"torch {found}, timm {_version('timm') or 'missing'}")


def check_disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < MIN_FREE_GB:
        return Check(
            "disk", "off", f"{free:.1f} GB free here", f"training and export want {MIN_FREE_GB:g} GB: free some, or use --out"
        )
    return Check("disk", "ok", f"{free:.0f} GB free here")


def check_artifact() -> Check:
    """The newest artefact below ./runs, opened and run once."""
    try:
        folder = find_artifacts([])[-1]
    except InputError as error:
        return Check("newest artefact", "off", error.message, error.hint)
    import numpy as np

    from dtkd_edge.deploy.backends import open_backend

    try:
        artifact = Artifact.open(folder)
        with open_backend(artifact) as backend:
            backend.run(np.zeros([1, *artifact.manifest.input.shape[1:]], np.uint8))
            words = f"{folder}: runs in {backend.effective_precision} on {backend.device}"
    except DtkdEdgeError as error:
        return Check("newest artefact", "off", error.message, error.hint)
    return Check("newest artefact", "ok", words)


CHECKS: list[Callable[[], Check]] = [
    check_python,
    check_libraries,
    check_onnxruntime,
    check_openvino,
    check_nvidia,
    check_tensorrt,
    check_camera,
    check_opencv,
    check_demo,
    check_training,
    check_disk,
    check_artifact,
]


def doctor() -> None:
    """Print one numbered line per check and a fix where there is one. NotHereError (exit 4) when the core does not work."""
    colours = {"ok": "\033[32m", "off": "\033[33m", "bad": "\033[31m"} if sys.stdout.isatty() else {}
    broken = []
    for number, check in enumerate(CHECKS, 1):
        result = _safe(check)
        mark = f"{colours.get(result.mark, '')}{result.mark:<3}{chr(27) + '[0m' if colours else ''}"
        print(f"{number:2}  {mark}  {result.name:<15}  {result.words}")
        if result.fix:
            print(f"{'':9}{'':<15}    fix: {result.fix}" if result.mark != "ok" else f"{'':9}{'':<15}    note: {result.fix}")
        if result.mark == "bad":
            broken.append(result.name)
    if broken:
        raise NotHereError(f"the runtime does not work here: {', '.join(broken)}", "see the fix lines above")
    print("the runtime works here; 'off' lines are options")


def _safe(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # a broken driver must not hide the other lines
        name = check.__name__.removeprefix("check_")
        return Check(
            name, "off", f"{type(error).__name__}: {_first_line(error)}", "its installation is damaged: install it again"
        )


def _import_error(module: str) -> str:
    """Why a module does not import, or ''."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return "not installed"
    except Exception as error:
        return _first_line(error)
    return ""


def _first_line(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
