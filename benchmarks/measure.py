"""Artefacts × devices × scenarios on this machine, to records. No torch.

One artefact that cannot be opened, or that fails while it runs, becomes a row that says so; the others are measured.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping, Sequence

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks import accuracy
from dtkd_edge.benchmarks.answers import Journal, journal_path
from dtkd_edge.benchmarks.devices import find_device
from dtkd_edge.benchmarks.plan import Data, find_reference
from dtkd_edge.benchmarks.queries import Inputs, make_inputs, make_query
from dtkd_edge.benchmarks.record import NO_ACCURACY, Record, Status, identity
from dtkd_edge.benchmarks.roofline import measure_machine
from dtkd_edge.benchmarks.rows import Opened, Options, asked_of, missing_rows, row_of, title, versions
from dtkd_edge.benchmarks.scenarios import Scenario, Subject, Timing, run_closed, run_live
from dtkd_edge.benchmarks.telemetry import Sampler, sources_of
from dtkd_edge.console import say
from dtkd_edge.deploy.backends import TARGETS, open_backend
from dtkd_edge.deploy.metrics import resident_memory
from dtkd_edge.errors import ArtifactError, DataError, DtkdEdgeError, MissingDevice, NotHereError, UsageError
from dtkd_edge.preprocess import Preprocess

Emit = Callable[[list[Record]], None]
DataOf = Callable[[Artifact], tuple[Data | None, str]]


class _Failed(Exception):
    """A query that raised; `error` in our words."""

    def __init__(self, label: str, error: DtkdEdgeError) -> None:
        super().__init__(label)
        self.label, self.error = label, error


def measure(
    artifacts: Sequence[Artifact],
    devices: Sequence[str],
    scenarios: Sequence[Scenario],
    options: Options,
    data_of: DataOf,
    emit: Emit,
    finished: Mapping[str | None, Record] | None = None,
) -> None:
    """Run everything; `emit` gets the records of a scenario as soon as they are whole, so an interruption loses little.

    finished: rows by identity, emitted as they are and not measured again. A device that is not here makes rows that say so;
    DataError where the data has no label in common with any artefact.
    """
    tools, before = versions(), finished or {}

    def todo(artifact: Artifact, device: str) -> list[Scenario]:
        name = title(artifact)
        return [s for s in scenarios if not keep(identity(name, asked_of(artifact, device, options, s), None, s.name, tools))]

    def keep(row: str) -> bool:
        kept.extend([before[row]] if row in before else [])
        return row in before

    kept: list[Record] = []
    plan = [(d, [(a, left) for a in artifacts if (left := todo(a, d))]) for d in devices]
    emit(sorted(kept, key=lambda r: [s.name for s in scenarios].index(r.scenario)))
    if options.roofline and options.machine is None and any(work for _, work in plan):
        say("roofline: measuring matrix products and memory")
        options.machine = measure_machine(options.threads)
    for device, work in plan:
        if not work:
            continue
        with Sampler(sources=sources_of(device)) as sampler:
            opened: list[Opened] = []
            try:
                for artifact, left in work:
                    try:
                        opened.append(_open(artifact, device, left, options))
                    except (NotHereError, ArtifactError) as error:
                        rows = missing_rows(artifact, device, left, options, error, facts=sampler.facts, tools=tools)
                        say(f"{rows[0].status}: {title(artifact)} on {device}: {error.message}")
                        emit(rows)
                if opened:
                    _measure_open(opened, scenarios, options, data_of, emit, sampler, tools)
                for one in opened:
                    if one.journal is not None and one.accuracy is not None:  # its rows are there
                        one.journal.remove()
            finally:
                for one in opened:
                    one.close()


def _open(artifact: Artifact, device: str, todo: list[Scenario], options: Options) -> Opened:
    """Open an artefact on a device and run it once. NotHereError: the device does not run it; ArtifactError: nothing would."""
    with contextlib.suppress(Exception):  # the library's own time and memory belong to no artefact, least of all to the first
        importlib.import_module(TARGETS[artifact.manifest.target])
    inputs = make_inputs(artifact.manifest.preprocess)
    found = find_device(device)
    before, start = _resident_mb(), time.perf_counter()
    backend = open_backend(artifact, device=found, threads=options.threads)
    load_ms = (time.perf_counter() - start) * 1e3
    try:
        query, _ = make_query(backend, Scenario("first", 1, None, ""), (), inputs)
        _guarded(query, title(artifact))(0)
    except _Failed as failed:
        backend.close()
        if isinstance(failed.error, (NotHereError, ArtifactError)):
            raise failed.error from failed
        raise ArtifactError(f"{artifact.folder}: {failed.error.message}", "export the run again") from failed
    after = _resident_mb()
    grown = None if before is None or after is None else round(max(after - before, 0.0), 1)
    one = Opened(artifact, backend, round(load_ms, 1), grown, device, todo)
    if "throughput" in backend.hints and artifact.manifest.mode == "clip" and any(s.hint == "throughput" for s in todo):
        try:
            one.wide = open_backend(artifact, device=found, threads=options.threads, hint="throughput")
        except DtkdEdgeError:
            one.close()
            raise
    return one


def _guarded(query: Callable[[int], object], label: str) -> Callable[[int], object]:
    """The query, whose error says which artefact it was and ends no other's measurement."""

    def guarded(i: int) -> object:
        try:
            return query(i)
        except DtkdEdgeError as error:
            raise _Failed(label, error) from error
        except Exception as error:  # runtimes raise whatever they like
            raise _Failed(label, accuracy.runtime_error(error)) from error

    return guarded


def _measure_open(
    opened: list[Opened],
    scenarios: Sequence[Scenario],
    options: Options,
    data_of: DataOf,
    emit: Emit,
    sampler: Sampler,
    tools: dict[str, str],
) -> None:
    inputs: dict[tuple[Preprocess, int], Inputs] = {}

    def inputs_of(one: Opened) -> Inputs:
        return inputs[one.artifact.manifest.preprocess, id(one.data)]

    for one in opened:
        one.data, why = data_of(one.artifact)
        if one.data is None and options.clips != 0:
            one.notes.append(NO_ACCURACY + why)
        data, key = one.data, (one.artifact.manifest.preprocess, id(one.data))
        if key not in inputs:
            clips = (data.clips[i] for i in range(len(data.clips))) if data else ()
            inputs[key] = make_inputs(key[0], clips, data.name if data else "")
    if options.clips != 0:
        out = _measure_accuracy(opened, options, tools)
        for one, error in out:
            state = _state_of(error)
            say(f"{state}: {one.label}: {error.message}")
            mine = inputs_of(one)
            emit([row_of(one, s, options, sampler, tools, mine, status=state, reason=error.message) for s in one.todo])
        opened = [one for one in opened if not any(one is gone for gone, _ in out)]
    for scenario in scenarios:
        subjects: list[Subject] = []
        able: dict[str, tuple[Opened, Inputs]] = {}
        for number, one in enumerate(opened):
            if scenario not in one.todo:
                continue
            mine = inputs_of(one)
            label = f"{number}|{one.label}|{scenario.name}"  # two runs may have exports of one name
            query, per_query = make_query(one.backend_of(scenario), scenario, options.include, mine)
            subjects.append(Subject(label, _guarded(query, label), per_query))
            able[label] = (one, mine)
        for subject in list(subjects):
            try:
                subject.query(0)
            except _Failed as failed:  # a stream artefact and eight clips at once, say
                subjects.remove(subject)
                status: Status = "unsupported" if isinstance(failed.error, (UsageError, NotHereError)) else "failed"
                one, mine = able[subject.label]
                emit([row_of(one, scenario, options, sampler, tools, mine, status=status, reason=failed.error.message)])
        if not subjects:
            continue
        say(f"{scenario.name}: {', '.join(able[s.label][0].label for s in subjects)}")
        while subjects:
            try:
                timings = _time(subjects, scenario, options, sampler)
            except _Failed as failed:  # the device disappeared, its memory is full: the others start this scenario anew
                one, mine = able[failed.label]
                subjects = [s for s in subjects if s.label != failed.label]
                state = _state_of(failed.error)
                gone = f"while it ran: {failed.error.message}"
                say(f"{state}: {one.label}, {gone}")
                emit([row_of(one, scenario, options, sampler, tools, mine, status=state, reason=gone)])
                continue
            emit(
                [
                    row_of(able[s.label][0], scenario, options, sampler, tools, able[s.label][1], timing=t, label=s.label)
                    for s, t in zip(subjects, timings, strict=True)
                ]
            )
            break


def _state_of(error: DtkdEdgeError) -> Status:
    """Of a row that ended while it ran."""
    return "lost" if isinstance(error, MissingDevice) else "failed"


def _measure_accuracy(opened: list[Opened], options: Options, tools: dict[str, str]) -> list[tuple[Opened, DtkdEdgeError]]:
    """Set everyone's accuracy, each clip decoded once per data set; returns those that have none, and why: no label in common
    with their data, or a runtime that failed.

    DataError where no artefact has a label in common.
    """
    groups: dict[int, tuple[Data, list[Opened]]] = {}
    strangers: list[tuple[Opened, DtkdEdgeError]] = []
    for one in opened:
        data = one.data
        if data is None:
            continue
        try:
            accuracy.match_labels(one.artifact.manifest.labels, data.clips.classes, str(one.artifact.folder))
        except DataError as error:
            strangers.append((one, error))
            continue
        groups.setdefault(id(data), (data, []))[1].append(one)
    if len(strangers) == len(opened):
        raise strangers[0][1]
    for data, members in groups.values():
        digest = accuracy.data_digest(data.clips)
        subjects = []
        for member in members:
            member.journal = Journal(journal_path(member.backend, tools, digest), fresh=options.fresh)
            subjects.append(accuracy.Candidate(member.backend, member.journal, find_reference(member.artifact, data)))
        results = accuracy.measure_accuracy(subjects, data.clips, data.name, options.clips)
        for member, result in zip(members, results, strict=True):
            if isinstance(result, DtkdEdgeError):
                strangers.append((member, result))
            else:
                member.accuracy = result
    return strangers


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
        return run_closed(subjects, options.budget, percent=scenario.percent, on_block=mark)
    finally:
        sampler.label = None


def _resident_mb() -> float | None:
    return resident_memory() / 2**20 or None
