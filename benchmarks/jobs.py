"""What is asked for as jobs: one host, its devices, artefacts and scenarios, measured together. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtkd_edge.artifact import MANIFEST, Artifact, now
from dtkd_edge.benchmarks.devices import find_device
from dtkd_edge.benchmarks.matrix import HERE, Spec
from dtkd_edge.benchmarks.measure import Emit, measure
from dtkd_edge.benchmarks.plan import Data, data_config, find_data, run_of
from dtkd_edge.benchmarks.record import Device, Record, Status
from dtkd_edge.benchmarks.rows import Options, missing_rows
from dtkd_edge.benchmarks.scenarios import SCENARIOS, Budget, Scenario
from dtkd_edge.console import say
from dtkd_edge.errors import ArtifactError, DtkdEdgeError, InputError
from dtkd_edge.runs import find_artifacts


@dataclass
class Job:
    """host: None: this machine. broken: artefacts that cannot be opened, and why."""

    artifacts: list[Artifact]
    broken: list[tuple[Path, ArtifactError]]
    host: str | None
    devices: list[str]
    scenarios: list[Scenario]
    options: Options
    data: Path | None
    overrides: list[str]

    def run(self, emit: Emit, finished: Mapping[str | None, Record], keep_log: Callable[[str, str, str], None]) -> None:
        """Measure, and `emit` rows as they come; those that are `finished` are emitted as they are. keep_log: a far machine's."""
        emit([row for folder, error in self.broken for row in self._broken(folder, error)])
        if not self.artifacts:
            return
        if self.host is not None:
            from dtkd_edge.benchmarks.remote import bench_on

            bench_on(
                self.host, self.artifacts, self.devices, self.scenarios, self.options, emit,
                data=self.data, overrides=self.overrides, finished=finished, keep_log=keep_log,
            )  # fmt: skip
            return
        if len(self.devices) == 1:
            find_device(self.devices[0])  # nothing else to measure: an error instead of rows
        source = data_source(self.data, self.overrides)
        measure(self.artifacts, self.devices, self.scenarios, self.options, source, emit, finished)

    def missing(self, error: DtkdEdgeError, there: Sequence[Record]) -> list[Record]:
        """Rows for what an error of the whole job left out; `there`: the rows that the job has made."""
        status: Status | None = "lost" if self.host and error.exit_code == 4 else None
        have = {(r.artifact, r.asked.device, r.scenario) for r in there if r.asked}
        rows = [
            row
            for device in self.devices
            for artifact in self.artifacts
            for row in missing_rows(artifact, device, self.scenarios, self.options, error, status, host=self.host)
        ]
        return [r for r in rows if r.asked and (r.artifact, r.asked.device, r.scenario) not in have]

    def _broken(self, folder: Path, error: ArtifactError) -> list[Record]:
        """Its manifest may be what is broken, so nothing is read from it."""
        say(f"failed: {error.message}")
        run = run_of(folder)
        return [
            Record(
                created=now(), status="failed", reason=error.message, path=str(folder), target="unknown", precision="unknown",
                artifact=f"{run.name}/{folder.resolve().name}" if run else folder.resolve().name,
                device=Device(kind=device, name=device, host=self.host), scenario=scenario.name, command=self.options.command,
            )
            for device in self.devices
            for scenario in self.scenarios
        ]  # fmt: skip


def make_jobs(spec: Spec) -> list[Job]:
    """One job per host. Raises InputError for an artefact that is not there; a changed or broken one is part of the job."""
    artifacts: list[Artifact] = []
    broken: list[tuple[Path, ArtifactError]] = []
    for folder in find_artifacts(_expanded(spec.artifacts)):
        try:
            artifacts.append(Artifact.open(folder))
        except ArtifactError as error:
            if not (folder / MANIFEST).is_file():  # mistyped: better said now than after an hour
                raise
            broken.append((folder, error))
    jobs = []
    for host in dict.fromkeys(spec.hosts):
        far = None if host == HERE else host
        options = Options(
            budget=Budget(spec.min_queries, spec.min_seconds, spec.warmup, spec.max_seconds),
            include=tuple(spec.include),
            threads=spec.threads,
            camera_fps=spec.camera_fps,
            clips=0 if far and spec.data is None and not spec.set else spec.clips,  # a run's own data is not there
            data=" ".join([*([str(spec.data)] if spec.data else []), *spec.set]),
            roofline=spec.roofline,
        )
        options.command = command_line([*(a.folder for a in artifacts), *(f for f, _ in broken)], spec, far, options)
        scenarios = [SCENARIOS[name] for name in spec.scenarios]
        jobs.append(Job(artifacts, broken, far, spec.devices, scenarios, options, spec.data, spec.set))
    return jobs


def _expanded(artifacts: list[str]) -> list[Path]:
    """Paths, with * as in the shell."""
    out: list[Path] = []
    for path in map(Path, artifacts):
        if path.exists() or not set(str(path)) & set("*?["):
            out.append(path)
            continue
        named = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        # A killed export leaves a hidden folder, which no shell's * would name.
        found = [p for p in named if not any(part.startswith(".") and part not in path.parts for part in p.parts)]
        if not found:
            raise InputError(f"{path}: nothing matches", "name artefacts or runs that are there")
        out += found
    return list(dict.fromkeys(out))


def data_source(data: Path | None, overrides: list[str]) -> Callable[[Artifact], tuple[Data | None, str]]:
    """`find_data`, opened once per distinct configuration, so that artefacts share decoded clips."""
    held: dict[str, tuple[Data | None, str]] = {}

    def find(artifact: Artifact) -> tuple[Data | None, str]:
        config = data_config(artifact.folder, data, overrides)
        key = config.model_dump_json() if config else ""
        if key not in held:
            held[key] = find_data(artifact.folder, data, overrides)
            if (found := held[key][0]) is not None:
                for line in found.clips.notes:
                    say(line)
        return held[key]

    return find


def command_line(folders: Sequence[Path], spec: Spec, host: str | None, options: Options) -> str:
    """The command that repeats a job, every option that matters written out."""
    words = ["dtkd-edge", "bench", *map(str, folders), "--device", ",".join(spec.devices)]
    words += ["--host", host] if host else []
    for scenario in spec.scenarios:
        words += ["--scenario", scenario]
    for override in spec.set:
        words += ["--set", override]
    words += ["--data", str(spec.data)] if spec.data else []
    words += ["--include", ",".join(options.include)] if options.include else []
    words += ["--threads", str(options.threads)] if options.threads else []
    words += ["--clips", str(options.clips)] if options.clips is not None else []
    words += ["--camera-fps", f"{options.camera_fps:g}"] if "live" in spec.scenarios else []
    words += ["--roofline"] if options.roofline else []
    budget = options.budget
    words += ["--min-queries", str(budget.queries), "--min-seconds", f"{budget.seconds:g}"]
    words += ["--max-seconds", f"{budget.limit:g}"] if budget.limit != Budget.limit else []
    words += ["--warmup", f"{budget.warmup:g}"] if budget.warmup != Budget.warmup else []
    return shlex.join(words)
