"""`dtkd-edge doctor`: what works on this machine, line by line, and the fix for what does not."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dtkd_edge.artifact import Artifact
from dtkd_edge.deploy.backends.devices import cpu_name, nvidia_gpus
from dtkd_edge.deploy.preflight import Check, check_camera, check_jetson, is_jetson
from dtkd_edge.errors import DtkdEdgeError, InputError, NotHereError
from dtkd_edge.runs import find_artifacts

MIN_FREE_GB = 2.0
OLDEST_PYTHON = (3, 10)
DEMO_PORT = 8080
TIMED = 5  # runs of an artefact, after two that are not timed


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
    if is_jetson():  # asked first: JetPack 7 has an nvidia-smi too
        return check_jetson()
    gpus = nvidia_gpus()
    if gpus:
        return Check("NVIDIA GPU", "ok", "; ".join(f"{g.name} (compute {g.compute_capability}, driver {g.driver})" for g in gpus))
    fix = "with a card: install NVIDIA's driver, until nvidia-smi lists it; without one the CPU runs all but TensorRT"
    return Check("NVIDIA GPU", "off", "none (nvidia-smi finds none)", fix)


def check_tensorrt() -> Check:
    from dtkd_edge.deploy.backends.tensorrt import Cuda, current_key, import_tensorrt

    try:
        key = current_key(import_tensorrt(), Cuda(0))
    except NotHereError as error:
        return Check("TensorRT", "off", error.message, error.hint)
    return Check("TensorRT", "ok", f"{key.tensorrt} on {key.gpu}")


def check_opencv() -> Check:
    """Optional: the window, and CSI cameras by GStreamer."""
    from dtkd_edge.deploy.sources.device import GSTREAMER_HOW, OPENCV_HOW, has_gstreamer

    reason = _import_error("cv2")
    if reason:
        return Check("OpenCV", "off", f"{reason} (needed for --view window and CSI cameras)", OPENCV_HOW)
    import cv2

    streamer = "with" if has_gstreamer(cv2) else "without"
    fix = "" if streamer == "with" else f"only a Jetson's CSI camera needs it: {GSTREAMER_HOW}"
    return Check("OpenCV", "ok", f"{cv2.__version__} {streamer} GStreamer ({Path(cv2.__file__).parent})", fix)


def check_demo() -> Check:
    missing = [name for name in ("av", "starlette", "uvicorn", "websockets") if _import_error(name)]
    if missing:
        return Check("live demo", "off", f"not installed: {', '.join(missing)}", 'pip install "dtkd-edge[demo]"')
    words = f"av {_version('av')}, uvicorn {_version('uvicorn')}"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", DEMO_PORT)) == 0:
            return Check("live demo", "ok", f"{words}; port {DEMO_PORT} is taken", "dtkd-edge demo --port 0 takes a free one")
    return Check("live demo", "ok", words)


def check_training() -> Check:
    """By the installed version alone: importing torch takes seconds."""
    found = _version("torch")
    if not found and is_jetson():
        return Check(
            "training", "off", "torch is not installed (a device needs none)", "train and export on a PC; copy the artefact"
        )
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


def check_artifact(given: Path | None = None) -> Check:
    """The newest artefact below ./runs, or the one that was named, opened and timed."""
    name = "newest artefact" if given is None else "artefact"
    try:
        folder = find_artifacts([] if given is None else [given])[-1]
    except InputError as error:
        there = "copy an exported folder here, then: dtkd-edge doctor FOLDER"
        return Check(name, "off", error.message, error.hint if _version("torch") else there)
    import numpy as np

    from dtkd_edge.deploy.backends import open_backend

    try:
        artifact = Artifact.open(folder)
        with open_backend(artifact) as backend:
            frames = np.zeros([1, *artifact.manifest.input.shape[1:]], np.uint8)
            times = []
            for _ in range(TIMED + 2):
                begin = time.perf_counter()
                backend.run(frames)
                times.append(time.perf_counter() - begin)
            took = f"{1000 * statistics.median(times[2:]):.3g} ms a {'frame' if artifact.manifest.mode == 'stream' else 'clip'}"
            words = f"{folder}: runs in {backend.effective_precision} on {backend.device}, {took}"
    except DtkdEdgeError as error:
        return Check(name, "off" if given is None else "bad", error.message, error.hint)
    return Check(name, "ok", words)


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


def doctor(artifact: Path | None = None) -> None:
    """Print one numbered line per check and a fix where there is one.

    NotHereError (exit 4) when the core does not work, or an artefact that was named does not run here.
    """
    colours = {"ok": "\033[32m", "off": "\033[33m", "bad": "\033[31m"} if sys.stdout.isatty() else {}
    broken = []
    for number, check in enumerate(CHECKS, 1):
        result = _safe(partial(check_artifact, artifact) if check is check_artifact else check, check.__name__)
        mark = f"{colours.get(result.mark, '')}{result.mark:<3}{chr(27) + '[0m' if colours else ''}"
        print(f"{number:2}  {mark}  {result.name:<15}  {result.words}")
        if result.fix:
            print(f"{'':9}{'':<15}    fix: {result.fix}" if result.mark != "ok" else f"{'':9}{'':<15}    note: {result.fix}")
        if result.mark == "bad":
            broken.append(result.name)
    if broken:
        raise NotHereError(f"the runtime does not work here: {', '.join(broken)}", "see the fix lines above")
    print("the runtime works here; 'off' lines are options")


def _safe(check: Callable[[], Check], function: str) -> Check:
    try:
        return check()
    except Exception as error:  # a broken driver must not hide the other lines
        name = function.removeprefix("check_")
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
