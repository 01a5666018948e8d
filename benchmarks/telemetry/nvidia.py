"""NVIDIA GPUs of PCs and servers, and Jetson Thor, through NVML (the Python package nvidia-ml-py, module pynvml)."""

from __future__ import annotations

import os
from typing import Any

from dtkd_edge.benchmarks.telemetry import Reading
from dtkd_edge.deploy.backends.devices import nvidia_gpus
from dtkd_edge.errors import MissingDependency

# nvmlClocksEventReason*: the ones that mean that the GPU ran slower than it was asked to (NVML API reference).
SLOWDOWNS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


def decode_slowdowns(mask: int) -> set[str]:
    """Names of the slow-downs in NVML's bit mask; idle and set clocks are none."""
    return {name for bit, name in SLOWDOWNS.items() if mask & bit}


def open_nvidia(index: int | None = None) -> NvidiaSource | None:
    """The GPU that CUDA's device 0 is, or None where there is no NVML or no GPU.

    Raises MissingDependency where there is a GPU and only the Python package is missing: a note in the record.
    """
    try:
        import pynvml
    except ImportError as error:
        if nvidia_gpus():
            raise MissingDependency("its clocks, power and throttling are not read: pip install nvidia-ml-py") from error
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        if not pynvml.nvmlDeviceGetCount():
            return None
        return NvidiaSource(pynvml, _first_visible() if index is None else index)
    except pynvml.NVMLError:
        return None


def _first_visible() -> int:
    """CUDA_VISIBLE_DEVICES renumbers CUDA's devices, not NVML's."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return int(first) if first.isdigit() else 0


class NvidiaSource:
    name = "nvidia"

    def __init__(self, pynvml: Any, index: int) -> None:
        self.nvml = pynvml
        self.handle = pynvml.nvmlDeviceGetHandleByIndex(index)

    def facts(self) -> dict[str, Any]:
        n, handle = self.nvml, self.handle

        def ask(call: str, *arguments: Any) -> Any:
            try:
                value = getattr(n, call)(handle, *arguments)
            except (n.NVMLError, AttributeError):
                return None
            return value.decode() if isinstance(value, bytes) else value

        driver = n.nvmlSystemGetDriverVersion()
        memory = ask("nvmlDeviceGetMemoryInfo")
        capability = ask("nvmlDeviceGetCudaComputeCapability")
        limit = ask("nvmlDeviceGetEnforcedPowerLimit")
        return {
            "gpu": ask("nvmlDeviceGetName"),
            "driver": driver.decode() if isinstance(driver, bytes) else driver,
            "memory_gb": round(memory.total / 2**30, 1) if memory else None,
            "compute_capability": ".".join(map(str, capability)) if capability else None,
            "power_limit_w": round(limit / 1000, 1) if limit else None,
            "max_sm_mhz": ask("nvmlDeviceGetMaxClockInfo", n.NVML_CLOCK_SM),
        }

    def read(self) -> Reading:
        n, handle, reading = self.nvml, self.handle, Reading()
        for name, kind in (("gpu", n.NVML_CLOCK_SM), ("gpu memory", n.NVML_CLOCK_MEM)):
            value = self._try("nvmlDeviceGetClockInfo", handle, kind)
            if value is not None:
                reading.clocks_mhz[name] = float(value)
        temperature = self._try("nvmlDeviceGetTemperature", handle, n.NVML_TEMPERATURE_GPU)
        if temperature is not None:
            reading.temperatures_c["gpu"] = float(temperature)
        milliwatts = self._try("nvmlDeviceGetPowerUsage", handle)
        reading.power_w = None if milliwatts is None else milliwatts / 1000
        mask = self._try("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if mask is None:  # the older name of the same
            mask = self._try("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        reading.throttle = None if mask is None else decode_slowdowns(mask)
        return reading

    def _try(self, call: str, *arguments: Any) -> Any:
        """Integrated GPUs answer some questions with 'not supported'."""
        try:
            return getattr(self.nvml, call)(*arguments)
        except (self.nvml.NVMLError, AttributeError):
            return None

    def close(self) -> None:
        self.nvml.nvmlShutdown()
