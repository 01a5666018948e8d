"""What the machine was doing while it was measured: clocks, temperatures, power, throttling.

Adding a source is one file and one line in SOURCES.

A source that is missing, forbidden or broken never fails a bench: it becomes a note in the record.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from dtkd_edge.benchmarks.record import Telemetry

ROOT_VARIABLE = "DTKD_EDGE_DEVICE_ROOT"
LEAST_CPU_S = 0.2  # the kernel counts in hundredths of a second: less says nothing


def device_root() -> Path:
    """Where /proc, /sys and /etc are read; another folder than / lets a copied or prepared device be looked at."""
    return Path(os.environ.get(ROOT_VARIABLE, "/"))


def read(path: Path) -> str | None:
    """A small file of /proc or /sys without its padding, or None."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\x00 \n\t")
    except OSError:
        return None


@dataclass
class Reading:
    """One look at the machine. watts: of the whole board or package where `total`, by rail name otherwise."""

    clocks_mhz: dict[str, float] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    power_w: float | None = None
    throttle: set[str] | None = None  # active reasons now; None: this source cannot tell
    throttle_count: int | None = None  # a counter that only grows; None: there is none
    others: tuple[float, float] | None = None  # CPU seconds since the last reading: of other processes, of all CPUs together


class Source(Protocol):
    name: str

    def facts(self) -> dict[str, Any]:
        """What does not change during a bench: model, driver, cores, power mode."""

    def read(self) -> Reading: ...

    def close(self) -> None: ...


Open = Callable[[Path], "Source | None"]


def _cpu(root: Path) -> Source | None:
    from dtkd_edge.benchmarks.telemetry.cpu import CpuSource

    return CpuSource(root)


def _nvidia(root: Path, index: int = 0) -> Source | None:
    from dtkd_edge.benchmarks.telemetry.nvidia import open_nvidia

    return open_nvidia(index)


def _jetson(root: Path) -> Source | None:
    from dtkd_edge.benchmarks.telemetry.jetson import open_jetson

    return open_jetson(root)


SOURCES: dict[str, Open] = {"cpu": _cpu, "nvidia": _nvidia, "jetson": _jetson}


def sources_of(device: str) -> dict[str, Open]:
    """SOURCES for a `--device`: of GPUs the one that it means, and none for the CPU."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return {name: source for name, source in SOURCES.items() if name != "nvidia"}
    return {**SOURCES, "nvidia": partial(_nvidia, index=int(index))} if kind == "cuda" and index else SOURCES


class Sampler:
    """Reads all sources twice a second on a thread of its own, and sorts the readings by what was being measured.

    `label` names it (None: nothing, between blocks). A reading takes some tens of microseconds of one core.
    """

    def __init__(self, root: Path | None = None, *, interval: float = 0.5, sources: dict[str, Open] | None = None) -> None:
        self.interval = interval
        self.label: str | None = None
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {}
        self._sources: list[Source] = []
        self._rows: list[tuple[float, str | None, str, Reading]] = []
        self._begin = time.perf_counter()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        for name, open_source in (SOURCES if sources is None else sources).items():
            try:
                source = open_source(device_root() if root is None else root)
                if source is not None:
                    self.facts[name] = source.facts()
                    self._sources.append(source)
            except Exception as error:  # whatever a driver or a strange /sys does
                self.notes.append(f"{name}: {_reason(error)}")
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Sampler:
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        for source in self._sources:
            try:
                source.close()
            except Exception as error:
                self.notes.append(f"{source.name}: {_reason(error)}")

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self.sample()

    def sample(self) -> None:
        """One reading of every source, now."""
        with self._lock:
            label, now = self.label, time.perf_counter() - self._begin
            for source in list(self._sources):
                try:
                    self._rows.append((now, label, source.name, source.read()))
                except Exception as error:
                    self.notes.append(f"{source.name}: {_reason(error)}")
                    self._sources.remove(source)

    def telemetry(self, label: str) -> Telemetry:
        """Medians over the readings taken while `label` was measured, its timeline, and whether the machine held back."""
        with self._lock:
            rows = [row for row in self._rows if row[1] == label]
        clocks: dict[str, list[float]] = {}
        temperatures: dict[str, list[float]] = {}
        timeline: dict[float, dict[str, float]] = {}
        for now, _, source, reading in rows:
            point = timeline.setdefault(now, {"t": round(now, 2)})
            for name, value in reading.clocks_mhz.items():
                clocks.setdefault(name, []).append(value)
                point[f"{name} MHz"] = value
            for name, value in reading.temperatures_c.items():
                temperatures.setdefault(name, []).append(value)
                point[f"{name} °C"] = value
            if reading.power_w is not None:
                point[f"{source} W"] = round(reading.power_w, 3)
        shares = [r.others for _, _, _, r in rows if r.others is not None]
        others, whole = (sum(part) for part in zip(*shares, strict=True)) if shares else (0.0, 0.0)
        throttled, reasons = _throttled([row[2:] for row in rows])
        return Telemetry(
            clocks_mhz={k: _median(v) for k, v in clocks.items()},
            temperatures_c={k: max(v) for k, v in temperatures.items()},
            power_mode=self.facts.get("jetson", {}).get("power_mode") or self.facts.get("cpu", {}).get("governor"),
            throttled=throttled,
            throttle_reasons=reasons,
            other_load=round(others / whole, 3) if whole > LEAST_CPU_S else None,
            timeline=[p for p in timeline.values() if len(p) > 1],
            notes=list(dict.fromkeys(self.notes)),
        )

    def power(self, label: str, source: str) -> float | None:
        """Mean watts while `label` was measured, as `source` sees them."""
        watts = [r.power_w for _, at, name, r in self._rows if at == label and name == source and r.power_w is not None]
        return round(sum(watts) / len(watts), 3) if watts else None


def _throttled(rows: list[tuple[str, Reading]]) -> tuple[Literal["yes", "no", "unknown"], list[str]]:
    """yes: a source saw it; no: one that can tell saw none; unknown: none can tell."""
    can_tell, reasons = False, set()
    counters: dict[str, list[int]] = {}
    for source, reading in rows:
        if reading.throttle is not None:
            can_tell = True
            reasons |= reading.throttle
        if reading.throttle_count is not None:
            counters.setdefault(source, []).append(reading.throttle_count)
    for source, counts in counters.items():
        if len(counts) > 1:
            can_tell = True
            if counts[-1] > counts[0]:
                reasons.add(f"{source}: {counts[-1] - counts[0]} throttle events")
    return ("yes" if reasons else "no" if can_tell else "unknown"), sorted(reasons)


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return round(ordered[len(ordered) // 2], 1)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
