"""Artefacts × devices × scenarios on this machine, to records. No torch."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dtkd_edge import __version__
from dtkd_edge.artifact import Artifact, now
from dtkd_edge.benchmarks.accuracy import measure_accuracy
from dtkd_edge.benchmarks.devices import POWER_SOURCE, kind_of
from dtkd_edge.benchmarks.plan import Data
from dtkd_edge.benchmarks.queries import Inputs, make_inputs, make_query, timed_region
from dtkd_edge.benchmarks.record import NO_ACCURACY, Accuracy, Device, Record
from dtkd_edge.benchmarks.roofline import Machine, limit, measure_machine
from dtkd_edge.benchmarks.scenarios import Budget, Scenario, Subject, Timing, run_closed, run_live
from dtkd_edge.benchmarks.telemetry import Sampler
from dtkd_edge.console import say
from dtkd_edge.deploy.backends import TARGETS, Backend, open_backend
from dtkd_edge.deploy.metrics import resident_memory
from dtkd_edge.errors import ArtifactError, NotHereError, UsageError
from dtkd_edge.preprocess import Preprocess

TOOLS = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "numpy", "decord2")


@dataclass
class Options:
    """Of one bench. threads: of the runtime; camera_fps: of the live scenario; clips: most clips for accuracy (0: none);
    roofline: measure this machine's rates first, for rows that run on its CPU."""

    budget: Budget = field(default_factory=Budget)
    include: tuple[str, ...] = ()
    threads: int | None = None
    camera_fps: float = 30.0
    clips: int | None = None
    roofline: bool = False
    command: str = ""
    machine: Machine | None = None


@dataclass
class Opened:
    """An artefact that a device runs, and what opening it cost."""

    artifact: Artifact
    backend: Backend
    load_ms: float
    memory_mb: float | None
    asked: str
    accuracy: Accuracy | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{title(self.artifact)} on {self.backend.device}"


def title(artifact: Artifact) -> str:
    """'name/folder', which tells the exports of one run apart."""
    return f"{artifact.manifest.name}/{artifact.folder.resolve().name}"


def measure(
    artifacts: Sequence[Artifact],
    devices: Sequence[str],
    scenarios: Sequence[Scenario],
    options: Options,
    data_of: Callable[[Artifact], tuple[Data | None, str]],
    emit: Callable[[list[Record]], None],
) -> None:
    """Run everything; `emit` gets the records of a scenario as soon as they are whole, so an interruption loses little."""
    tools = versions()
    if options.roofline:
        say("roofline: measuring matrix products and memory")
        options.machine = measure_machine(options.threads)
    with Sampler() as sampler:
        for device in devices:
            opened: list[Opened] = []
            try:
                for artifact in artifacts:
                    found = _open(artifact, device, options, sampler)
                    if isinstance(found, Opened):
                        opened.append(found)
                    else:
                        emit([found.model_copy(update={"scenario": s.name, "tools": tools}) for s in scenarios])
                if opened:
                    _measure_open(opened, scenarios, options, data_of, emit, sampler, tools)
            finally:
                for one in opened:
                    one.backend.close()


def _open(artifact: Artifact, device: str, options: Options, sampler: Sampler) -> Opened | Record:
    """Open an artefact, or the record that says why the device does not run it."""
    with contextlib.suppress(Exception):  # the library's own time and memory belong to no artefact, least of all to the first
        importlib.import_module(TARGETS[artifact.manifest.target])
    inputs = make_inputs(artifact.manifest.preprocess)
    before, start = _resident_mb(), time.perf_counter()
    try:
        backend = open_backend(artifact, device=device, threads=options.threads)
    except (NotHereError, ArtifactError) as error:
        say(f"unsupported: {title(artifact)} on {device}: {error.message}")
        record = _base(artifact, options, Device(kind=device, name=device, threads=options.threads, details=sampler.facts))
        return record.model_copy(update={"status": "unsupported", "reason": error.message})
    load_ms = (time.perf_counter() - start) * 1e3
    query, _ = make_query(backend, Scenario("first", 1, None, ""), (), inputs)
    query(0)
    after = _resident_mb()
    grown = None if before is None or after is None else round(max(after - before, 0.0), 1)
    return Opened(artifact, backend, round(load_ms, 1), grown, device)


def _measure_open(
    opened: list[Opened],
    scenarios: Sequence[Scenario],
    options: Options,
    data_of: Callable[[Artifact], tuple[Data | None, str]],
    emit: Callable[[list[Record]], None],
    sampler: Sampler,
    tools: dict[str, str],
) -> None:
    inputs: dict[tuple[Preprocess, int], Inputs] = {}
    groups: dict[int, tuple[Data, list[Opened]]] = {}
    sources: dict[str, Data | None] = {}
    for one in opened:
        data, why = data_of(one.artifact)
        sources[one.label] = data
        if data is None:
            if options.clips != 0:
                one.notes.append(NO_ACCURACY + why)
        else:
            groups.setdefault(id(data), (data, []))[1].append(one)
        key = (one.artifact.manifest.preprocess, id(data))
        if key not in inputs:
            clips = (data.clips[i] for i in range(len(data.clips))) if data else ()
            inputs[key] = make_inputs(key[0], clips, data.name if data else "")
    if options.clips != 0:
        for data, members in groups.values():
            results = measure_accuracy([m.backend for m in members], data.clips, data.name, options.clips)
            for member, result in zip(members, results, strict=True):
                member.accuracy = result
    for scenario in scenarios:
        subjects, able = [], []
        for one in opened:
            mine = inputs[one.artifact.manifest.preprocess, id(sources[one.label])]
            query, per_query = make_query(one.backend, scenario, options.include, mine)
            try:
                query(0)
            except (UsageError, NotHereError) as error:  # a stream artefact and eight clips at once, say
                emit([_row(one, scenario, options, sampler, tools, mine, reason=error.message)])
                continue
            subjects.append(Subject(f"{one.label}|{scenario.name}", query, per_query))
            able.append((one, mine))
        if not subjects:
            continue
        say(f"{scenario.name}: {', '.join(one.label for one, _ in able)}")
        try:
            timings = _time(subjects, scenario, options, sampler)
        except NotHereError as error:  # a device that disappears, or whose memory is full
            gone = f"failed while it ran: {error.message}"
            emit([_row(one, scenario, options, sampler, tools, mine, reason=gone) for one, mine in able])
            continue
        emit(
            [
                _row(one, scenario, options, sampler, tools, mine, timing=timing, label=subject.label)
                for (one, mine), subject, timing in zip(able, subjects, timings, strict=True)
            ]
        )


def _time(subjects: list[Subject], scenario: Scenario, options: Options, sampler: Sampler) -> list[Timing]:
    def mark(subject: Subject, seconds: float, before: bool) -> None:
        if before:
            sampler.label = subject.label
        sampler.sample()  # outside of the timed region; short runs get readings too
        if not before:
            sampler.label = None

    try:
        if scenario.name == "live":
            timings = []
            for subject in subjects:
                mark(subject, 0.0, True)
                timings.append(run_live(subject, options.budget, options.camera_fps))
                mark(subject, 0.0, False)
            return timings
        return run_closed(subjects, options.budget, on_block=mark)
    finally:
        sampler.label = None


def _row(
    one: Opened,
    scenario: Scenario,
    options: Options,
    sampler: Sampler,
    tools: dict[str, str],
    inputs: Inputs,
    *,
    timing: Timing | None = None,
    label: str = "",
    reason: str | None = None,
) -> Record:
    backend, kind = one.backend, kind_of(one.backend)
    facts = {k: v for k, v in sampler.facts.items() if k == "cpu" or (k == "nvidia") == (kind == "cuda")}
    name = facts.get("jetson", {}).get("model") or backend.device_name
    where = Device(kind=kind, name=name, unit=backend.device, threads=options.threads, details=facts)
    record = _base(one.artifact, options, where)
    update: dict[str, object] = {
        "scenario": scenario.name,
        "backend": backend.name,
        "effective_precision": backend.effective_precision,
        "timed_region": timed_region(options.include),
        "input_source": inputs.source,
        "tools": tools,
        "load_ms": one.load_ms,
        "memory_mb": one.memory_mb,
        "accuracy": one.accuracy,
        "notes": list(one.notes),
    }
    if timing is None:
        return record.model_copy(update={**update, "status": "unsupported", "reason": reason})
    if timing.short:
        update["notes"] = [*one.notes, f"stopped after {options.budget.limit:g} s with {len(timing.times)} queries"]
    if options.machine is not None and timing.live is None:
        if kind == "cpu":
            median = timing.latency(scenario.percent).p50
            update["roofline"] = limit(one.artifact, options.machine, timing.clips, median)
        else:
            update["notes"] = [*one.notes, "no roofline: its rates are measured on CPUs only"]
    power = sampler.power(label, POWER_SOURCE.get(kind, "cpu"))
    update |= {
        "latency_ms": timing.latency(scenario.percent),
        "throughput": round(timing.throughput, 3) if timing.live is None else timing.live.labels_per_second,
        "live": timing.live,
        "clips_per_query": timing.clips,
        "warmup_s": round(timing.warmup, 3),
        "seconds": round(timing.seconds, 3),
        "noisy": round(timing.noisy, 4),
        "power_w": power,
        "energy_mj": round(power / timing.throughput * 1e3, 3) if power else None,
        "telemetry": sampler.telemetry(label),
    }
    return record.model_copy(update=update)


def _base(artifact: Artifact, options: Options, device: Device) -> Record:
    manifest = artifact.manifest
    return Record(
        created=now(),
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
        scenario="",
        command=options.command,
    )


def versions() -> dict[str, str]:
    """What a number depends on and a reader may have in another version."""
    found = {"dtkd-edge": __version__, "python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _resident_mb() -> float | None:
    return resident_memory() / 2**20 or None
