"""`dtkd-edge bench`: find the artefacts, measure them here or on a far host, print, and keep the records. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks.devices import resolve
from dtkd_edge.benchmarks.measure import Options, measure
from dtkd_edge.benchmarks.plan import Data, data_config, find_data, run_of
from dtkd_edge.benchmarks.queries import parse_include
from dtkd_edge.benchmarks.record import Record, write_records
from dtkd_edge.benchmarks.report import legend, markdown, table
from dtkd_edge.benchmarks.scenarios import Budget, Scenario, find_scenarios
from dtkd_edge.console import output_width, print_table, say, write_result
from dtkd_edge.errors import InputError, MissingDevice, UsageError
from dtkd_edge.files import write_text
from dtkd_edge.runs import find_artifacts


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
    clips: int | None = None,
    camera_fps: float = 30.0,
    roofline: bool = False,
    report: Path | None = None,
    md: Path | None = None,
) -> list[Record]:
    """Measure artefacts (none given: the newest run's) and return the records.

    device: auto, cpu, cuda, jetson, or several with commas. host: user@address, measured over ssh. overrides: data.key=value.
    json: where the records go ('-': stdout, and nothing else there). clips: most clips for accuracy, 0 for none.
    roofline: say how near each row comes to what this machine's arithmetic and memory allow. Where the
    artefacts belong to one run, RUN/bench.jsonl and RUN/bench.html are written too. Raises MissingDevice when no row could run.
    """
    chosen, parts = find_scenarios(scenarios or []), parse_include(include)
    if max_seconds < min_seconds:
        raise UsageError(f"--max-seconds {max_seconds:g} is less than --min-seconds {min_seconds:g}", "change one of them")
    opened = [Artifact.open(folder) for folder in find_artifacts(artifacts)]
    options = Options(
        budget=Budget(min_queries, min_seconds, limit=max_seconds),
        include=parts,
        threads=threads,
        camera_fps=camera_fps,
        clips=clips,
        roofline=roofline,
    )
    options.command = command_line(opened, device, host, chosen, overrides or [], data, options)
    records: list[Record] = []
    runs = {run_of(artifact.folder) for artifact in opened}
    run = runs.pop() if len(runs) == 1 else None
    kept = run / "bench.jsonl" if run else None

    def emit(rows: list[Record]) -> None:  # as they come, so that no kill loses a whole row
        nonlocal run, kept
        records.extend(rows)
        if json not in (None, "-"):
            write_records(Path(json), records)
        if kept:
            try:
                write_records(kept, records)
            except InputError as error:  # somebody else's run, a read-only disk: no reason not to measure
                say(f"not kept: {error.message}")
                run = kept = None

    try:
        if host is not None:
            from dtkd_edge.benchmarks.remote import bench_on

            bench_on(host, opened, device, chosen, options, emit, data=data, overrides=overrides or [])
        else:
            devices = resolve(device)
            measure(opened, devices, chosen, options, data_source(data, overrides or []), emit)
    finally:  # Ctrl-C keeps and shows the rows that are whole
        if records:
            show(records, json)
            _write(records, report, md, run, kept)
    ok = [r for r in records if r.status == "ok"]
    if records and not ok:
        raise MissingDevice(
            f"nothing here runs on {device}: {records[0].reason}", "see the table for each; and: dtkd-edge doctor"
        )
    return records


def data_source(data: Path | None, overrides: list[str]) -> Callable[[Artifact], tuple[Data | None, str]]:
    """`find_data`, opened once per distinct configuration, so that artefacts share decoded clips."""
    held: dict[str, tuple[Data | None, str]] = {}

    def find(artifact: Artifact) -> tuple[Data | None, str]:
        config = data_config(artifact.folder, data, overrides)
        key = config.model_dump_json() if config else ""
        if key not in held:
            held[key] = find_data(artifact.folder, data, overrides)
        return held[key]

    return find


def show(records: list[Record], json: str | None) -> None:
    if json == "-":
        write_result([r.to_json() for r in records], "-")
        return
    rows, notes = table(records, output_width())
    print_table(rows)
    print()
    for line in [*notes, *legend(records)]:
        print(line)
    if json:
        write_result([r.to_json() for r in records], json)
        say(f"records: {json}")


def _write(records: list[Record], report: Path | None, md: Path | None, run: Path | None, kept: Path | None) -> None:
    from dtkd_edge.benchmarks.page import page

    if kept:
        say(f"records: {kept}")
    html = report or (run / "bench.html" if run else None)
    if html:
        write_text(html, page(records))
        say(f"report: {html}")
    if md:
        write_text(md, markdown(records))
        say(f"table: {md}")


def command_line(
    artifacts: list[Artifact],
    device: str,
    host: str | None,
    scenarios: list[Scenario],
    overrides: list[str],
    data: Path | None,
    options: Options,
) -> str:
    """The command that repeats this bench, every option that matters written out."""
    words = ["dtkd-edge", "bench", *(str(a.folder) for a in artifacts), "--device", device]
    words += ["--host", host] if host else []
    for scenario in scenarios:
        words += ["--scenario", scenario.name]
    for override in overrides:
        words += ["--set", override]
    words += ["--data", str(data)] if data else []
    words += ["--include", ",".join(options.include)] if options.include else []
    words += ["--threads", str(options.threads)] if options.threads else []
    words += ["--clips", str(options.clips)] if options.clips is not None else []
    words += ["--roofline"] if options.roofline else []
    budget = options.budget
    words += ["--min-queries", str(budget.queries), "--min-seconds", f"{budget.seconds:g}"]
    words += ["--max-seconds", f"{budget.limit:g}"] if budget.limit != Budget.limit else []
    return shlex.join(words)
