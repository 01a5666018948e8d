"""Names of devices, and what the caller's `--device` means. No torch, and nothing that starts a GPU context."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dtkd_edge.errors import UsageError


class Gpu(NamedTuple):
    number: int
    name: str
    compute_capability: str
    driver: str


def parse_device(device: str) -> tuple[str, int]:
    """'auto', 'cpu', 'gpu', 'npu', 'cuda', 'cuda:1' → (kind, index)."""
    kind, _, index = device.lower().partition(":")
    if kind not in ("auto", "cpu", "cuda", "gpu", "npu") or (index and not index.isdigit()):
        raise UsageError(f"--device {device}: not a device", "one of: auto, cpu, cuda, cuda:N, gpu, npu")
    return kind, int(index or 0)


@cache
def cpu_name() -> str:
    """The processor's marketing name, as the kernel gives it (a Jetson's board name where that is all there is)."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    board = Path("/proc/device-tree/model")
    if board.is_file():
        return board.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    return platform.processor() or platform.machine()


def jetson_model(root: Path = Path("/")) -> str | None:
    """The module's name from the device tree ('NVIDIA Jetson Orin Nano …'), or None where this is no Jetson."""
    trees = (root / "proc/device-tree/model", root / "sys/firmware/devicetree/base/model")
    model = next((text for text in map(_text, trees) if text), "")
    if "jetson" in model.lower() or "tegra" in model.lower():
        return model
    return f"Jetson ({model or 'unknown module'})" if _text(root / "etc/nv_tegra_release") else None


def _text(path: Path) -> str:
    """Empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


@cache
def nvidia_gpus() -> tuple[Gpu, ...]:
    """The GPUs that `nvidia-smi` lists; none where it is absent or fails (a Jetson before JetPack 7 has none)."""
    query = "--query-gpu=index,name,compute_cap,driver_version"
    try:
        result = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in result.stdout.splitlines()] if result.returncode == 0 else []
    return tuple(Gpu(int(row[0]), *row[1:4]) for row in rows if len(row) == 4 and row[0].isdigit())
