"""What `dtkd-edge doctor` looks at on a Jetson, and cameras. Paths start at `root`, so that tests bring a Jetson along."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Mark = Literal["ok", "off", "bad"]
ROOT = Path("/")
JETPACK = {"35": "5", "36": "6", "38": "7"}  # by the major number of L4T
TOO_OLD = ("32", "34", "35")  # their Python is older than 3.10
GPU_NODES = ("dev/nvmap", "dev/nvhost-gpu", "dev/nvidia0")
GROUPS = "sudo usermod -aG video,render $USER, then log in again"


@dataclass(frozen=True)
class Check:
    """ok: works · off: an option that is not here (fix says how to get it) · bad: the runtime core does not work."""

    name: str
    mark: Mark
    words: str
    fix: str = ""


def is_jetson(root: Path = ROOT) -> bool:
    return (root / "etc/nv_tegra_release").is_file()


def check_jetson(root: Path = ROOT, prefix: Path | None = None) -> Check:
    """Release, module, rights on the GPU, whether the environment at `prefix` sees JetPack's libraries, power mode."""
    release = _text(root / "etc/nv_tegra_release")
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", release)
    major = found[1] if found else ""
    words = f"{_text(root / 'proc/device-tree/model') or 'Jetson'}, L4T {major}.{found[2]}" if found else release[:60]
    words += f" (JetPack {JETPACK[major]})" if major in JETPACK else ""
    if major in TOO_OLD:
        return Check("Jetson", "off", words, "its Python and TensorRT are too old: flash JetPack 6 or newer")
    shut = [f"/{node}" for node in GPU_NODES if (root / node).exists() and not os.access(root / node, os.R_OK | os.W_OK)]
    if shut:
        return Check("Jetson", "off", f"{words}; no right to open {', '.join(shut)}", GROUPS)
    venv = _text((prefix or Path(sys.prefix)) / "pyvenv.cfg")
    if re.search(r"include-system-site-packages\s*=\s*false", venv):
        fix = "make the environment anew: python3 -m venv --system-site-packages FOLDER"
        return Check("Jetson", "off", f"{words}; this environment does not see JetPack's TensorRT and OpenCV", fix)
    mode = _power_mode()
    note = "sudo nvpmodel -m 0 && sudo jetson_clocks is the fastest; nvpmodel -q says which mode is on"
    return Check("Jetson", "ok", f"{words}, power mode {mode}" if mode else words, note)


def check_camera(root: Path = ROOT) -> Check:
    """Cameras by name; a node that gives no pictures (a camera's second node carries data about them) is left out."""
    nodes = sorted((root / "dev").glob("video*"), key=lambda node: (len(node.name), node.name))
    about = root / "sys/class/video4linux"
    nodes = [node for node in nodes if _text(about / node.name / "index") in ("", "0")]
    named = [f"{node.name.removeprefix('video')} ({_text(about / node.name / 'name') or '/dev/' + node.name})" for node in nodes]
    shut = [f"/dev/{node.name}" for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if not nodes:
        more = "; a CSI camera: check its cable, then: sudo systemctl restart nvargus-daemon" if is_jetson(root) else ""
        return Check("camera", "off", "no /dev/video*", f"plug one in; or demo --source pattern, FILE, URL or browser{more}")
    if shut:
        return Check("camera", "off", f"no right to open {', '.join(shut)}", "sudo usermod -aG video $USER, then log in again")
    return Check("camera", "ok", f"--source {', '.join(named)}")


def _power_mode() -> str:
    """'NV Power Mode: 15W' → '15W'; '' where nvpmodel is not, or wants root."""
    program = shutil.which("nvpmodel")
    if program is None:
        return ""
    try:
        said = subprocess.run([program, "-q"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"NV Power Mode:\s*(\S+)", said)
    return found[1] if found else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""
