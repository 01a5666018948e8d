"""Jetson: the module from the device tree, L4T and power mode, and clocks, temperatures and power from `tegrastats`.

The line that tegrastats prints differs by module and release. Handled: bare and mW-suffixed rails, two or three values
per rail, temperatures with a limit (`cpu@50C/50C`), GPU clocks as one number, as a list, or not at all (JetPack 7).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtkd_edge.benchmarks.telemetry import Reading, read
from dtkd_edge.deploy.backends.devices import jetson_model

# The one rail that feeds the whole module, by module: Orin Nano/NX and Xavier NX, Nano and TX1, Thor.
INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")
# AGX modules have no such rail; these are all that feed the module: AGX Orin, Thor without VIN, AGX Xavier.
RAIL_SETS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (-?\d+)(?:mW)?/-?\d+(?:mW)?(?:/-?\d+(?:mW)?)?(?!\S)")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][\w.-]*)@(-?\d+(?:\.\d+)?)C(?:/-?[\d.]+C)?(?!\S)")
_GPU = re.compile(r"GR3D_FREQ(?: (\d+)%)?(?: ?@\[?([\d,]+)\]?)?")
_MEMORY_CLOCK = re.compile(r"EMC_FREQ \d+%@(\d+)")
_CORES = re.compile(r"CPU \[([^\]]*)\]")
_RAM = re.compile(r"RAM (\d+)/(\d+)MB")
NOT_CONNECTED = ("NC",)
NO_SENSOR_C = -200  # a sensor of a block that is off reads -256


@dataclass
class Tegrastats:
    """One line. watts: by rail; power_w: of the module, None where the line has not all of its rails."""

    ram_mb: tuple[int, int] | None = None
    gpu_load: float | None = None
    clocks_mhz: dict[str, float] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    watts: dict[str, float] = field(default_factory=dict)
    power_w: float | None = None


def parse_tegrastats(line: str) -> Tegrastats:
    """Read one line; what is not in it stays empty. Never raises on strange lines."""
    out = Tegrastats()
    if ram := _RAM.search(line):
        out.ram_mb = (int(ram[1]), int(ram[2]))
    if cores := _CORES.search(line):
        clocks = [int(core.rpartition("@")[2]) for core in cores[1].split(",") if re.fullmatch(r"\d+%@\d+", core.strip())]
        if clocks:
            out.clocks_mhz["cpu"] = round(sum(clocks) / len(clocks), 1)
    if gpu := _GPU.search(line):
        out.gpu_load = float(gpu[1]) if gpu[1] else None
        found = [int(n) for n in (gpu[2] or "").split(",") if n]
        if found:
            out.clocks_mhz["gpu"] = float(max(found))
    if memory := _MEMORY_CLOCK.search(line):
        out.clocks_mhz["memory"] = float(memory[1])
    for name, value in _TEMPERATURE.findall(line):
        if float(value) > NO_SENSOR_C and name.upper() != "PMIC":  # the PMIC's value is a constant, not a measurement
            out.temperatures_c[name.lower()] = float(value)
    for name, milliwatts in _RAIL.findall(line):
        if name not in NOT_CONNECTED:
            out.watts[name] = int(milliwatts) / 1000
    out.power_w = module_power(out.watts)
    return out


def module_power(watts: dict[str, float]) -> float | None:
    for rail in INPUT_RAILS:
        if rail in watts:
            return watts[rail]
    for rails in RAIL_SETS:
        if all(rail in watts for rail in rails):
            return round(sum(watts[rail] for rail in rails), 3)
    return None


def parse_l4t(text: str) -> str | None:
    """/etc/nv_tegra_release's first line to '36.4.3'."""
    found = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def jetpack(l4t: str | None) -> str | None:
    """The JetPack generation that an L4T release belongs to."""
    major = int(l4t.split(".")[0]) if l4t else 0
    return {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}.get(major)


def parse_power_mode(text: str) -> str | None:
    """`nvpmodel -q` to the mode's name."""
    found = re.search(r"NV Power Mode:\s*(\S+)", text)
    return found[1] if found else None


def open_jetson(root: Path = Path("/")) -> JetsonSource | None:
    model = jetson_model(root)
    return JetsonSource(root, model) if model else None


class JetsonSource:
    """Listens to a tegrastats process of its own; asks for no more rights than the user has."""

    name = "jetson"

    def __init__(self, root: Path, model: str, *, interval_ms: int = 250) -> None:
        self.root, self.model = root, model
        self._latest: Tegrastats | None = None
        self._process: subprocess.Popen[str] | None = None
        command = _tool(root, "tegrastats")
        if command:
            self._process = subprocess.Popen(
                [command, "--interval", str(interval_ms)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
            )
            threading.Thread(target=self._listen, name="tegrastats", daemon=True).start()

    def _listen(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self._latest = parse_tegrastats(line)

    def facts(self) -> dict[str, Any]:
        l4t = parse_l4t(read(self.root / "etc/nv_tegra_release") or "")
        mode = None
        if command := _tool(self.root, "nvpmodel"):
            try:
                asked = subprocess.run(
                    [command, "-q"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False
                )
                mode = parse_power_mode(asked.stdout)
            except (OSError, subprocess.SubprocessError):
                mode = None
        facts = {"model": self.model, "l4t": l4t, "jetpack": jetpack(l4t), "power_mode": mode}
        if self._process is None:
            facts["missing"] = "tegrastats"
        return facts

    def read(self) -> Reading:
        latest, reading = self._latest, Reading(throttle_count=self._over_current())
        if latest is not None:
            reading.clocks_mhz, reading.temperatures_c = dict(latest.clocks_mhz), dict(latest.temperatures_c)
            reading.power_w = latest.power_w
        if "gpu" not in reading.clocks_mhz:
            hertz = [read(p) for p in (self.root / "sys/class/devfreq").glob("*gpu*/cur_freq")]
            found = [int(h) / 1e6 for h in hertz if h and h.isdigit()]
            if found:
                reading.clocks_mhz["gpu"] = max(found)
        return reading

    def _over_current(self) -> int | None:
        """Over-current events since boot (soctherm-oc): each one cut the clocks."""
        counts = [read(p) for p in (self.root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")]
        found = [int(c) for c in counts if c and c.isdigit()]
        return sum(found) if found else None

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()


def _tool(root: Path, name: str) -> str | None:
    """The tool of the looked-at root; on a real device, wherever PATH or the usual folders have it."""
    for folder in ("usr/bin", "usr/sbin"):
        if (root / folder / name).is_file():
            return str(root / folder / name)
    return shutil.which(name) if root == Path("/") else None
