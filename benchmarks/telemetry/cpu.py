"""The CPU: what it is (model, cores, instruction sets, governor) and what it does (clocks, temperatures, package power)."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from dtkd_edge.benchmarks.telemetry import Reading, read

# What decides which kernels a runtime picks.
INSTRUCTION_SETS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16",
    "amx_int8", "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
PACKAGE_SENSORS = ("k10temp", "coretemp", "zenpower", "cpu_thermal", "x86_pkg_temp")


class CpuSource:
    name = "cpu"

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.cpus = root / "sys/devices/system/cpu"
        self._energy: tuple[float, float] | None = None
        self._used: tuple[float, float, float] | None = None

    def facts(self) -> dict[str, Any]:
        info = parse_cpuinfo(read(self.root / "proc/cpuinfo") or "")
        governor = read(self.cpus / "cpu0/cpufreq/scaling_governor")
        facts: dict[str, Any] = {
            "model": info["model"] or read(self.root / "proc/device-tree/model") or platform.machine(),
            "machine": platform.machine(),
            "cores": info["cores"] or None,
            "logical_cpus": info["cpus"] or os.cpu_count(),
            "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "instruction_sets": info["instruction_sets"],
            "governor": governor,
            "memory_gb": _memory_gb(read(self.root / "proc/meminfo") or ""),
            "kernel": platform.release(),
            "virtual": info["virtual"],
            "load_1m": _load(read(self.root / "proc/loadavg") or ""),
        }
        limit = _cpu_limit(read(self.root / "sys/fs/cgroup/cpu.max") or "")
        if limit is not None:
            facts["cpu_limit"] = limit
        return facts

    def read(self) -> Reading:
        reading = Reading(temperatures_c=self._temperatures(), power_w=self._power(), others=self._others())
        clocks = [
            int(text) / 1000
            for path in sorted(self.cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
            if (text := read(path)) and text.isdigit()
        ]
        if not clocks:
            clocks = parse_cpuinfo(read(self.root / "proc/cpuinfo") or "")["mhz"]
        if clocks:
            reading.clocks_mhz["cpu"] = round(sum(clocks) / len(clocks), 1)
        counts = [read(p) for p in self.cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
        numbers = [int(c) for c in counts if c and c.isdigit()]
        reading.throttle_count = sum(numbers) if numbers else None
        return reading

    def close(self) -> None: ...

    def _temperatures(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for chip in sorted((self.root / "sys/class/hwmon").glob("hwmon*")):
            text = read(chip / "temp1_input")
            if read(chip / "name") in PACKAGE_SENSORS and text and text.lstrip("-").isdigit():
                found["cpu"] = int(text) / 1000
        for zone in sorted((self.root / "sys/class/thermal").glob("thermal_zone*")) if not found else []:
            kind, text = read(zone / "type") or "", read(zone / "temp")
            if text and text.lstrip("-").isdigit() and kind.lower() in ("x86_pkg_temp", "cpu-thermal", "cpu_thermal"):
                found["cpu"] = int(text) / 1000
        return found

    def _power(self) -> float | None:
        """Watts of the first package since the last reading (RAPL's energy counter; often readable by root only)."""
        text = read(self.root / "sys/class/powercap/intel-rapl:0/energy_uj")
        if not text or not text.isdigit():
            return None
        now, before = (time.perf_counter(), float(text)), self._energy
        self._energy = now
        if before is None or now[1] < before[1] or now[0] - before[0] < 0.05:  # first look, wrapped, or too close
            return None
        return (now[1] - before[1]) / 1e6 / (now[0] - before[0])

    def _others(self) -> tuple[float, float] | None:
        """CPU seconds since the last reading: what was busy without this process, and all there were."""
        counted = parse_stat(read(self.root / "proc/stat") or "")
        if counted is None:
            return None
        own = os.times()
        now, before = (*counted, own.user + own.system), self._used
        self._used = now
        if before is None:
            return None
        busy, whole, mine = (b - a for a, b in zip(before, now, strict=True))
        return min(max(busy - mine, 0.0), whole), whole


def parse_stat(text: str) -> tuple[float, float] | None:
    """The first line of /proc/stat (proc_stat(5)) → seconds of all CPUs since boot: busy, steal included, and altogether."""
    parts = (text.splitlines() or [""])[0].split()
    if len(parts) < 9 or parts[0] != "cpu" or not all(part.isdigit() for part in parts[1:]):
        return None
    ticks = [int(part) / os.sysconf("SC_CLK_TCK") for part in parts[1:9]]  # guests are in user and nice already
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """The parts of /proc/cpuinfo that matter, x86 or Arm."""
    model, flags, mhz, cpus = "", "", [], 0
    cores: set[tuple[str, str]] = set()
    package = ""
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            cpus += 1
        elif key in ("model name", "Model") and not model:
            model = value
        elif key in ("flags", "Features") and not flags:
            flags = value
        elif key == "cpu MHz":
            mhz.append(float(value))
        elif key == "physical id":
            package = value
        elif key == "core id":
            cores.add((package, value))
    have = set(flags.split())
    return {
        "model": model,
        "cpus": cpus,
        "cores": len(cores),
        "mhz": mhz,
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in have],
        "virtual": "hypervisor" in have,
    }


def _memory_gb(meminfo: str) -> float | None:
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return round(int(line.split()[1]) / 2**20, 1)
    return None


def _load(text: str) -> float | None:
    return float(text.split(maxsplit=1)[0]) if text else None


def _cpu_limit(text: str) -> float | None:
    """CPUs that a container may use (cgroup 2: 'QUOTA PERIOD'), None where there is no limit."""
    parts = text.split()
    return round(int(parts[0]) / int(parts[1]), 2) if len(parts) == 2 and parts[0] != "max" else None
