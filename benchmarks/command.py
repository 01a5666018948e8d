"""`dtkd-edge bench`: find the artefacts, measure them here or on far hosts, print, and keep the records. No torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import ValidationError

from dtkd_edge.benchmarks.devices import device_names
from dtkd_edge.benchmarks.history import History, merge, old_rows, with_drift
from dtkd_edge.benchmarks.jobs import Job, make_jobs
from dtkd_edge.benchmarks.matrix import HERE, SUFFIXES, Spec, load_matrix
from dtkd_edge.benchmarks.plan import run_of
from dtkd_edge.benchmarks.queries import parse_include
from dtkd_edge.benchmarks.record import Record, write_records
from dtkd_edge.benchmarks.report import legend, markdown, table
from dtkd_edge.benchmarks.scenarios import Budget, find_scenarios
from dtkd_edge.console import output_width, print_table, say, write_result
from dtkd_edge.errors import DtkdEdgeError, InputError, MissingDevice, UsageError
from dtkd_edge.exits import goes_on
from dtkd_edge.files import write_text


def bench(
    artifacts: list[Path],
    *,
    device: str = "auto",
    host: str | None = None,
    scenarios: list[str] | None = None,
    overrides: list[str] | None = None,
    json: str | None = None,
    data: Path | None = None,
    include: str = "",
    threads: int | None = None,
    min_seconds: float = Budget.seconds,
    min_queries: int = Budget.queries,
    max_seconds: float = Budget.limit,
    warmup: float = Budget.warmup,
    clips: int | None = None,
    camera_fps: float = 30.0,
    roofline: bool = False,
    report: Path | None = None,
    md: Path | None = None,
    resume: bool | None = None,
) -> list[Record]:
    """Measure artefacts (none given: the newest run's; one YAML file: what it lists) and return the records.

    device: auto, cpu, cuda, jetson, or several with commas. host: user@address, measured over ssh; several with commas, `here`
    is this machine. overrides: data.key=value. json: where the records go ('-': stdout, and nothing else there). clips: most
    clips for accuracy, 0 for none. roofline: say how near each row comes to what this machine's arithmetic and memory allow.
    resume: take rows that are finished in the file of records (else in RUN/bench.jsonl); None: for a YAML file only.

    The rows of a run go to RUN/bench/DATE.jsonl too, and the newest of each to RUN/bench.jsonl and RUN/bench.html.
    Raises InputError when an artefact or its data failed, MissingDevice when a device or host went away or no row could run.
    """
    spec = _spec(
        artifacts=[str(a) for a in artifacts], devices=device_names(device), hosts=_hosts(host),
        scenarios=[s.name for s in find_scenarios(scenarios or [])], data=data, set=overrides or [],
        include=list(parse_include(include)), threads=threads, min_seconds=min_seconds, min_queries=min_queries,
        max_seconds=max_seconds, warmup=warmup, clips=clips, camera_fps=camera_fps, roofline=roofline,
    )  # fmt: skip
    output = None if json in (None, "-") else Path(str(json))
    specs = [spec]
    matrix = next((a for a in artifacts if a.suffix in SUFFIXES), None)
    if matrix is not None:
        _alone(matrix, spec)
        specs, written = load_matrix(matrix)
        output, report = output or written, report or (output or written).with_suffix(".html")
    for file in (output, report, md):
        if file is not None:
            _check_writable(file)
    jobs = [job for spec in specs for job in make_jobs(spec)]
    for job in jobs:
        job.options.fresh = resume is False
    if not any(job.artifacts for job in jobs):
        raise jobs[0].broken[0][1]
    again = resume is False or (resume is None and matrix is None)
    resuming = "the same command" + (" without --again" if resume is False else "" if matrix else " with --resume")
    resuming += " measures only what is missing"
    rows = _Rows(output, again)
    try:
        with goes_on(resuming):
            for job in jobs:
                _run(job, rows, alone=len(jobs) == 1)
    finally:  # Ctrl-C keeps and shows the rows that are whole
        if rows.records:
            _show(rows.records, json)
            rows.say_files()
            _write(rows, report, md)
    _verdict(rows.records, [d for job in jobs for d in job.devices], resuming)
    return rows.records


class _Rows:
    """The rows of this bench, written as they come, so that no kill loses a whole one."""

    def __init__(self, output: Path | None, again: bool) -> None:
        self.records: list[Record] = []
        self.output, self.again = output, again
        self.last = [] if output is None else old_rows(output)
        self.before = [] if again else self.last
        self.histories: dict[Path, History] = {}
        self.logs: dict[Path, str] = {}

    @property
    def finished(self) -> dict[str | None, Record]:
        rows = [r for history in self.histories.values() for r in history.before] if self.output is None else self.before
        return {} if self.again else {r.identity: r for r in rows if r.identity}

    @property
    def _last(self) -> dict[str | None, Record]:
        """The newest whole rows of former benches."""
        rows = [*(r for history in self.histories.values() for r in history.before), *self.last]
        return {r.identity: r for r in sorted(rows, key=lambda r: r.created) if r.identity}

    def expect(self, job: Job) -> None:
        """Open the histories of a job's runs."""
        for artifact in job.artifacts:
            run = run_of(artifact.folder)
            if run is not None and run not in self.histories:
                self.histories[run] = History(run)

    def emit(self, rows: list[Record]) -> None:
        if not rows:
            return
        finished, last = self.finished, self._last
        rows = [r if r.identity in finished else with_drift(r, last.get(r.identity)) for r in rows]
        self.records += rows
        if self.output:
            write_records(self.output, merge(self.before, self.records))
        for run, history in self.histories.items():
            history.add([r for r in rows if r.path and run_of(Path(r.path)) == run and r.identity not in finished])

    def keep_log(self, host: str, name: str, text: str) -> None:
        """A far machine's log beside the rows: FILE.HOST.log for FILE.jsonl. Where no rows are kept, no log is."""
        beside = self.output or next((history.own for history in self.histories.values() if not history.broken), None)
        if beside is None:
            return
        file = beside.with_suffix(f".{re.sub(r'[^A-Za-z0-9_.@-]', '_', host)}.{name}")
        self.logs[file] = self.logs.get(file, "") + text  # of several jobs on one host
        try:
            write_text(file, self.logs[file])
            say(f"{host}: its {name}: {file}")
        except InputError as error:
            say(f"not kept: {error.message}")

    def say_files(self) -> None:
        if self.output:
            say(f"records: {self.output}")
        for history in self.histories.values():
            if history.new and not history.broken:
                say(f"records: {history.file}   this bench: {history.own}")


def _spec(**options: object) -> Spec:
    """From the command line; what its own parser let through is a UsageError."""
    try:
        return Spec.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        key = "".join(f"--{part}: ".replace("_", "-") for part in first["loc"][:1])
        words = first["msg"].removeprefix("Value error, ").replace("max_seconds", "--max-seconds")
        raise UsageError(key + words.replace("min_seconds", "--min-seconds"), "see: dtkd-edge bench --help") from error


def _hosts(host: str | None) -> list[str]:
    return [HERE] if host is None else [name.strip() for name in host.split(",")]


def _check_writable(file: Path) -> None:
    """Now, and not after an hour of measuring."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{file}: its folder cannot be made: {error.strerror}", "choose another path") from error
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(
            f"{file}: cannot be written: {'it is a folder' if file.is_dir() else 'not allowed'}", "choose another path"
        )


def _alone(matrix: Path, spec: Spec) -> None:
    """A matrix file says everything about what is measured."""
    if len(spec.artifacts) > 1:
        raise UsageError(f"{matrix}: a list of benches stands alone", "name the other artefacts in it")
    for key, field in Spec.model_fields.items():
        if key != "artifacts" and getattr(spec, key) != field.get_default(call_default_factory=True):
            option = {"devices": "device", "hosts": "host", "scenarios": "scenario"}.get(key, key.replace("_", "-"))
            raise UsageError(f"--{option}: {matrix} says what is measured", f"write {key}: … into it")


def _run(job: Job, rows: _Rows, *, alone: bool) -> None:
    rows.expect(job)
    first = len(rows.records)
    try:
        job.run(rows.emit, rows.finished, rows.keep_log)
    except DtkdEdgeError as error:
        if alone:
            raise
        missing = job.missing(error, rows.records[first:])
        say(f"{missing[0].status if missing else 'failed'}: {error.message}")
        rows.emit(missing)


def _verdict(records: list[Record], devices: list[str], resuming: str) -> None:
    """The error that the exit code stands for, if any."""
    kinds: dict[str, type[DtkdEdgeError]] = {"failed": InputError, "lost": MissingDevice}
    for state, kind in kinds.items():
        bad = [r for r in records if r.status == state]
        if bad:
            words = f"{len(bad)} of {len(records)} rows {state}: {bad[0].reason}"
            raise kind(words, f"see the table; {resuming}")
    if records and not any(r.status == "ok" for r in records):
        words = f"nothing here runs on {', '.join(dict.fromkeys(devices))}: {records[0].reason}"
        raise MissingDevice(words, "see the table for each; and: dtkd-edge doctor")


def _show(records: list[Record], json: str | None) -> None:
    if json == "-":
        write_result([r.to_json() for r in records], "-")
        return
    rows, notes = table(records, output_width())
    print_table(rows)
    print()
    for line in [*notes, *legend(records)]:
        print(line)


def _write(rows: _Rows, report: Path | None, md: Path | None) -> None:
    from dtkd_edge.benchmarks.page import page

    pages = {
        history.run / "bench.html": history.rows for history in rows.histories.values() if history.new and not history.broken
    }
    if report:
        pages[report] = rows.records
    for file, records in pages.items():
        write_text(file, page(records))
        say(f"report: {file}")
    if md:
        write_text(md, markdown(rows.records))
        say(f"table: {md}")
