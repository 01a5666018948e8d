"""NVIDIA GPUs of PCs and servers, and Jetson Thor, through NVML (the Python package nvidia-ml-py, module pynvml)."""

from __future__ import annotations

import ctypes
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


def open_nvidia(index: int = 0) -> NvidiaSource | None:
    """The GPU that is CUDA's device `index` here, or None where there is no NVML or no such GPU.

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
        handle = _handle(pynvml, index)
    except pynvml.NVMLError:
        handle = None
    if handle is None:
        pynvml.nvmlShutdown()
        return None
    return NvidiaSource(pynvml, handle)


def _handle(pynvml: Any, index: int) -> Any:
    """NVML's GPU for CUDA's index, None for none. By the PCI address where there are several: CUDA numbers the fastest first and
    hides what CUDA_VISIBLE_DEVICES leaves out, NVML numbers all along the bus. Without CUDA's driver, that variable has to do."""
    count = pynvml.nvmlDeviceGetCount()
    if count < 2:
        return pynvml.nvmlDeviceGetHandleByIndex(0) if count else None
    address = pci_address(index)
    if address is not None:
        return pynvml.nvmlDeviceGetHandleByPciBusId(address)
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    name = names[index].strip() if index < len(names) else ""
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name) if name.startswith("GPU-") else None


def pci_address(index: int) -> str | None:
    """'0000:65:00.0' of CUDA's device, asked of the driver (cuDeviceGetPCIBusId; no context is made); None where it has none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        device, address = ctypes.c_int(), ctypes.create_string_buffer(32)
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), index):
            return None
        return None if cuda.cuDeviceGetPCIBusId(address, len(address), device) else address.value.decode()
    except (OSError, AttributeError):  # AttributeError: some other library of that name
        return None


class NvidiaSource:
    name = "nvidia"

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self.nvml, self.handle = pynvml, handle

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
