"""What `--device` means on this machine, and the error for a device that is not here. No torch."""

from __future__ import annotations

from pathlib import Path

from dtkd_edge.benchmarks.telemetry import device_root
from dtkd_edge.deploy.backends import Backend
from dtkd_edge.deploy.backends.devices import jetson_model, nvidia_gpus, parse_device
from dtkd_edge.errors import MissingDevice, UsageError

# Which telemetry source measures the power of a device of that kind.
POWER_SOURCE = {"cpu": "cpu", "cuda": "nvidia", "jetson": "jetson"}


def device_names(device: str) -> list[str]:
    """'auto', 'cpu', 'cuda', 'jetson' or several with commas → the names, once each."""
    names = [name.strip().lower() for name in device.split(",") if name.strip()]
    if not names:
        raise UsageError("--device: empty", "one of: auto, cpu, cuda, jetson, or several with commas")
    for name in names:
        if name != "jetson":
            parse_device(name)
    return list(dict.fromkeys(names))


def find_device(name: str, root: Path | None = None) -> str:
    """A device's name → what backends are asked for.

    Raises MissingDevice for a jetson or cuda that is not here; the runtimes' own lack of a device is found when they open.
    """
    on_jetson = jetson_model(root or device_root()) is not None
    if name == "jetson":
        if not on_jetson:
            raise MissingDevice(
                "--device jetson: this machine is no Jetson",
                "add --host user@address to measure on one over ssh, or run this command there",
            )
        return "auto"
    if parse_device(name)[0] == "cuda" and not on_jetson and not nvidia_gpus():
        raise MissingDevice(
            f"--device {name}: no NVIDIA GPU is usable here",
            "is its driver running? see: nvidia-smi; to measure here use --device cpu",
        )
    return name


def kind_of(backend: Backend, root: Path | None = None) -> str:
    """cpu, cuda or jetson (whatever part of one it runs on), or the runtime's own name for something else."""
    if jetson_model(root or device_root()) is not None:
        return "jetson"
    return backend.device.partition(":")[0]
