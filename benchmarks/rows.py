"""From what was measured, or why it was not, to records. No torch."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dtkd_edge import __version__
from dtkd_edge.artifact import Artifact, now
from dtkd_edge.benchmarks.answers import Journal
from dtkd_edge.benchmarks.devices import POWER_SOURCE, kind_of
from dtkd_edge.benchmarks.plan import Data
from dtkd_edge.benchmarks.queries import Inputs, timed_region
from dtkd_edge.benchmarks.record import Accuracy, Asked, Device, Record, Status
from dtkd_edge.benchmarks.roofline import Machine, limit
from dtkd_edge.benchmarks.scenarios import Budget, Scenario, Timing
from dtkd_edge.benchmarks.statistics import queries_for
from dtkd_edge.benchmarks.telemetry import Sampler, device_root
from dtkd_edge.deploy.backends import Backend
from dtkd_edge.deploy.backends.devices import cpu_name, jetson_model, nvidia_gpus
from dtkd_edge.errors import DtkdEdgeError, NotHereError

TOOLS = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "numpy", "decord2")


@dataclass
class Options:
    """Of one bench. threads: of the runtime; camera_fps: of the live scenario; clips: most clips for accuracy (0: none);
    data: --data and --set, in words; roofline: measure this machine's rates first, for rows that run on its CPU; fresh: take
    over nothing of an interrupted accuracy."""

    budget: Budget = field(default_factory=Budget)
    include: tuple[str, ...] = ()
    threads: int | None = None
    camera_fps: float = 30.0
    clips: int | None = None
    data: str = ""
    roofline: bool = False
    fresh: bool = False
    command: str = ""
    machine: Machine | None = None


@dataclass
class Opened:
    """An artefact that a device runs, and what opening it cost. asked: the device's name as given; todo: its scenarios;
    data: its labelled clips; journal: what it answered to them."""

    artifact: Artifact
    backend: Backend
    load_ms: float
    memory_mb: float | None
    asked: str
    todo: list[Scenario]
    data: Data | None = None
    accuracy: Accuracy | None = None
    journal: Journal | None = None
    notes: list[str] = field(default_factory=list)
    wide: Backend | None = None  # the same set up for throughput, where its runtime makes a difference

    @property
    def label(self) -> str:
        return f"{title(self.artifact)} on {self.backend.device}"

    def backend_of(self, scenario: Scenario) -> Backend:
        return self.wide if self.wide is not None and scenario.hint == "throughput" else self.backend

    def close(self) -> None:
        for backend in (self.backend, self.wide):
            if backend is not None:
                backend.close()


def title(artifact: Artifact) -> str:
    """'name/folder', which tells the exports of one run apart."""
    return f"{artifact.manifest.name}/{artifact.folder.resolve().name}"


def asked_of(artifact: Artifact, device: str, options: Options, scenario: Scenario) -> Asked:
    budget = options.budget
    return Asked(
        manifest=artifact.manifest.sha256,
        device=device,
        include=list(options.include),
        threads=options.threads,
        min_queries=budget.queries,
        min_seconds=budget.seconds,
        max_seconds=budget.limit,
        warmup=budget.warmup,
        camera_fps=options.camera_fps,
        clips=options.clips,
        data=options.data,
        roofline=options.roofline,
        hint=scenario.hint,
    )


def missing_rows(
    artifact: Artifact,
    device: str,
    scenarios: list[Scenario],
    options: Options,
    error: DtkdEdgeError,
    status: Status | None = None,
    facts: Mapping[str, Any] | None = None,
    tools: dict[str, str] | None = None,
    host: str | None = None,
) -> list[Record]:
    """The rows of an artefact that could not be measured on a device at all. status: from the error where none is given."""
    where = Device(kind=device, name=device, threads=options.threads, host=host, details=dict(facts or {}))
    update = {"status": status or status_of(error), "reason": error.message, "tools": tools or {}}
    return [_base(artifact, device, options, where, s).model_copy(update=update) for s in scenarios]


def status_of(error: DtkdEdgeError) -> Status:
    return "unsupported" if isinstance(error, NotHereError) else "failed"


def row_of(
    one: Opened,
    scenario: Scenario,
    options: Options,
    sampler: Sampler,
    tools: dict[str, str],
    inputs: Inputs,
    *,
    timing: Timing | None = None,
    label: str = "",
    status: Status = "ok",
    reason: str | None = None,
) -> Record:
    """A row of an opened artefact: with its timing, or with the reason why there is none."""
    backend, kind = one.backend_of(scenario), kind_of(one.backend)
    facts = {k: v for k, v in sampler.facts.items() if k == "cpu" or (k == "nvidia") == (kind == "cuda")}
    name = facts.get("jetson", {}).get("model") or backend.device_name
    where = Device(kind=kind, name=name, unit=backend.device, threads=options.threads, details=facts)
    record = _base(one.artifact, one.asked, options, where, scenario)
    update: dict[str, object] = {
        "backend": backend.name,
        "effective_precision": backend.effective_precision,
        "runtime": backend.properties,
        "timed_region": timed_region(options.include),
        "input_source": inputs.source,
        "tools": tools,
        "load_ms": one.load_ms,
        "memory_mb": one.memory_mb,
        "accuracy": one.accuracy,
    }
    notes = list(one.notes)
    if timing is None:
        return record.model_copy(update={**update, "notes": notes, "status": status, "reason": reason})
    if timing.short:
        notes.append(_stopped(timing, scenario, options.budget.limit))
    if options.machine is not None and timing.live is None:
        if kind == "cpu":
            median = timing.latency(scenario.percent).p50
            update["roofline"] = limit(one.artifact, options.machine, timing.clips, median)
        else:
            notes.append("no roofline: its rates are measured on CPUs only")
    rate = timing.throughput if timing.live is None else timing.live.labels_per_second
    power = sampler.power(label, POWER_SOURCE.get(kind, "cpu"))
    update |= {
        "notes": notes,
        "latency_ms": timing.latency(scenario.percent),
        "throughput": round(rate, 3),
        "live": timing.live,
        "clips_per_query": timing.clips,
        "warmup_s": round(timing.warmup, 3),
        "seconds": round(timing.seconds, 3),
        "noisy": round(timing.noisy, 4),
        "power_w": power,
        "energy_mj": round(power / rate * 1e3, 3) if power and rate else None,
        "telemetry": sampler.telemetry(label),
    }
    return record.model_copy(update=update)


def _stopped(timing: Timing, scenario: Scenario, limit: float) -> str:
    """A row that was ended by the clock, and what its queries are too few for."""
    words, count = f"stopped after {limit:g} s with {len(timing.times)} queries", queries_for(scenario.percent)
    return words if len(timing.times) >= count else f"{words}: p{scenario.percent:g} needs {count} for an upper bound"


def _base(artifact: Artifact, asked: str, options: Options, device: Device, scenario: Scenario) -> Record:
    manifest = artifact.manifest
    return Record(
        created=now(),
        asked=asked_of(artifact, asked, options, scenario),
        artifact=title(artifact),
        path=str(artifact.folder),
        files=manifest.files,
        model=manifest.model.model_dump(),
        target=manifest.target,
        mode=manifest.mode,
        precision=manifest.precision,
        verified=manifest.verify.passed if manifest.verify else None,
        agreement=manifest.verify.top1_agreement if manifest.verify else None,
        device=device,
        scenario=scenario.name,
        command=options.command,
    )


def machine_name() -> str:
    """What a row that is not measured twice was measured on."""
    gpus = [f"{gpu.name}, driver {gpu.driver}" for gpu in nvidia_gpus()]
    return "; ".join(part for part in (jetson_model(device_root()), cpu_name(), *gpus) if part)


def versions() -> dict[str, str]:
    """What a number depends on and a reader may have in another version."""
    found = {"dtkd-edge": __version__, "python": platform.python_version(), "machine": machine_name()}
    for name in TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
