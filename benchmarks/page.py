"""The report of a bench as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from dtkd_edge import plots
from dtkd_edge.benchmarks.queries import included
from dtkd_edge.benchmarks.record import Accuracy, Record, input_of, several_inputs
from dtkd_edge.benchmarks.report import COLUMNS, RIGHT, cells, device_line, legend, number, per_query, place, shown, timed
from dtkd_edge.benchmarks.scenarios import SCENARIOS
from dtkd_edge.console import counted
from dtkd_edge.page import document, figure


def page(records: Sequence[Record]) -> str:
    """The whole report as HTML text."""
    records = list(records)
    ok = [r for r in records if r.status == "ok"]
    names = _Names(ok)
    title = "Bench of " + ", ".join(dict.fromkeys(r.artifact.partition("/")[0] for r in records))
    devices = "<br>".join(escape(line) for line in dict.fromkeys(device_line(r) for r in records if r.status == "ok"))
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{devices}</p>' if devices else "",
        f'<p class="soft small">{escape(_dates(records))}</p>' if records else "",
        _tiles(ok, names),
        "<h2>Rows</h2>",
        _table(shown(records)),
        *(f'<p class="soft small">{escape(line)}</p>' for line in legend(records) if not line.startswith("Device:")),
        _plots(ok, names),
        _environment(records),
    ]
    return document(title, "".join(body))


def _dates(records: Sequence[Record]) -> str:
    """When the rows were measured: a run's page has the newest of each, perhaps of several benches."""
    first, last = (pick(r.created for r in records) for pick in (min, max))
    first, last = (moment.replace("T", " ").removesuffix("+00:00") for moment in (first, last))
    if last.partition(" ")[0] == first.partition(" ")[0]:
        last = last.partition(" ")[2]
        return f"{first} UTC" if first.endswith(last) else f"{first} to {last} UTC"
    return f"{first} to {last} UTC"


def series_name(record: Record) -> str:
    """What tells two rows of one plot apart."""
    more = included(record.timed_region)
    return f"{record.label} · {place(record)}" + (f" + {more}" if more else "")


class _Names:
    """Name and colour of each row in the plots. Rows of several inputs are told apart by them."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.several = several_inputs(records)
        self.colors = {name: i % plots.COLORS + 1 for i, name in enumerate(dict.fromkeys(map(self.name, records)))}

    def name(self, record: Record) -> str:
        source = input_of(record) if self.several else ""
        return series_name(record) + (f" · {source}" if source else "")

    def color(self, record: Record) -> int:
        return self.colors[self.name(record)]


def _rated(records: Sequence[Record]) -> list[tuple[Accuracy, Record]]:
    """The rows with an accuracy, of the newest row's clips alone: on others it means something else."""
    rated = [(r.accuracy, r) for r in records if r.accuracy]
    newest = max((r for _, r in rated), key=lambda r: r.created, default=None)
    return [(accuracy, r) for accuracy, r in rated if newest and input_of(r) == input_of(newest)]


def _tiles(records: list[Record], names: _Names) -> str:
    tiles = []
    single = [(r.latency_ms.p50, r) for r in records if r.scenario == "single-stream" and r.latency_ms]
    if single:
        fastest, best = min(single, key=lambda pair: pair[0])
        tiles.append((f"{number(fastest)} ms", f"fastest median per clip: {names.name(best)}"))
    rated = _rated(records)
    if rated:
        accuracy, top = max(rated, key=lambda pair: pair[0].top1)
        low, high = (100 * v for v in accuracy.top1_interval)
        tiles.append(
            (
                f"{100 * accuracy.top1:.1f} %",
                f"best top-1 on {counted(accuracy.n, 'clip')} ({low:.1f}–{high:.1f}): {names.name(top)}",
            )
        )
    offline = [r for r in records if r.scenario == "offline" and r.throughput]
    if offline:
        most = max(offline, key=lambda r: r.throughput or 0)
        tiles.append((f"{number(most.throughput)} clips/s", f"highest offline throughput: {names.name(most)}"))
    saving = [r for r in records if r.energy_mj]
    if saving:
        least = min(saving, key=lambda r: r.energy_mj or 0)
        tiles.append((f"{number(least.energy_mj)} mJ", f"least energy per clip: {names.name(least)}"))
    inner = "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{inner}</div>' if tiles else ""


def _table(records: list[Record]) -> str:
    """The terminal's table, with the notes below the artefact's name."""
    rows = [cells(r) for r in records]
    notes = COLUMNS.index("notes")
    used = [i for i in range(notes) if i < 5 or any(row[i] not in ("–", "") for row in rows)]
    head = "".join(f'<th class="{"r" if COLUMNS[i] in RIGHT else ""}">{escape(COLUMNS[i])}</th>' for i in used)
    lines = []
    for record, row in zip(records, rows, strict=True):
        tds = []
        for i in used:
            style = ["r"] if COLUMNS[i] in RIGHT else []
            style += ["off"] if record.status != "ok" else []
            style += ["bad"] if COLUMNS[i] == "throttled" and row[i] == "yes" else []
            text = escape(row[i])
            if i == 0 and row[notes]:
                text += f'<small class="{"warn" if record.status == "ok" else "bad"}">{escape(row[notes])}</small>'
            tds.append(f'<td class="{" ".join(style)}">{text}</td>')
        lines.append(f"<tr>{''.join(tds)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _plots(records: list[Record], names: _Names) -> str:
    figures = []
    single = [r for r in records if r.accuracy and r.latency_ms and r.scenario == "single-stream"]
    rated = [r for _, r in _rated(single)]
    if rated:
        points = [_point(r, name, names) for r, name in zip(rated, _short_names(rated, names), strict=True)]
        svg = plots.scatter(points, "median latency per clip, ms (log)", "top-1, %", "Accuracy against latency")
        note = "Up and to the left is better. Bars: 95 % interval." if len(points) > 1 else "Bar: 95 % interval."
        note += " Dashed: the Pareto front." if len(plots.pareto([(p.x, p.y) for p in points])) > 1 else ""
        note += f" Rows on {input_of(rated[0])}; those on other clips are not comparable." if names.several else ""
        figures.append(figure("Accuracy against latency", svg, "", note))
    for scenario in dict.fromkeys(r.scenario for r in records):
        rows = [r for r in records if r.scenario == scenario and r.latency_ms and r.latency_ms.quantiles]
        if rows:
            figures.append(_distribution(scenario, rows, names))
    figures += _timelines(records, names)
    return f'<h2>Plots</h2><div class="plots">{"".join(figures)}</div>' if figures else ""


def _short_names(records: list[Record], names: _Names) -> list[str]:
    """Names without what all have alike: the run, the device, the clips."""
    parts = [names.name(r).split(" · ", 1) for r in records]
    places = {rest for _, rest in parts}
    runs = {r.label.partition("/")[0] for r in records}
    labels = [r.label.partition("/")[2] or r.label if len(runs) == 1 else r.label for r in records]
    return [label if len(places) == 1 else f"{label} · {rest}" for label, (_, rest) in zip(labels, parts, strict=True)]


def _point(record: Record, name: str, names: _Names) -> plots.Point:
    latency, accuracy = record.latency_ms, record.accuracy
    assert latency is not None and accuracy is not None
    low, high = (100 * v for v in accuracy.top1_interval)
    share = f"top-1 {100 * accuracy.top1:.1f} % ({low:.1f}–{high:.1f}, n={accuracy.n})"
    tip = f"{names.name(record)}: {number(latency.p50)} ms, {share}"
    return plots.Point(latency.p50, 100 * accuracy.top1, name, names.color(record), (low, high), tip)


def _distribution(scenario: str, rows: list[Record], names: _Names) -> str:
    """The empirical distribution; its last percent is on the axis too, because that is where trouble shows."""
    series = []
    percent = SCENARIOS[scenario].percent if scenario in SCENARIOS and scenario != "live" else None  # live: by its labels' age
    for row in rows:
        latency = row.latency_ms
        assert latency is not None
        points = [(max(value, 1e-6), float(share)) for share, value in enumerate(latency.quantiles)]
        tips = [""] * len(points)
        for mark in {50, round(percent or 50)}:
            tips[mark] = f"{names.name(row)}: p{mark} = {number(points[mark][0])} ms"
        series.append(plots.Series(names.name(row) + per_query(row), names.color(row), points, tips))
    svg = plots.curves(
        series,
        "latency of a query, ms (log)",
        "% of queries within",
        f"Latency distribution, {scenario}",
        log_x=True,
    )
    judged = f" and p{percent:g}, by which the scenario is judged" if percent and percent != 50 else ""
    note = f"Steep is steady. Dots: the median{judged}. " + ", ".join(f"n={r.latency_ms.n:,}" for r in rows if r.latency_ms) + "."
    return figure(f"Latency distribution, {scenario}", svg, plots.key([(s.name, s.color) for s in series]), note)


def _timelines(records: list[Record], names: _Names) -> list[str]:
    """Clocks, temperatures and power over time, where some source read them at least three times."""
    figures = []
    for unit, title in (("MHz", "Clock"), ("°C", "Temperature"), ("W", "Power")):
        readings = dict.fromkeys(k for r in records for p in r.telemetry.timeline for k in p if k.endswith(f" {unit}"))
        for reading in readings:
            series = []
            for record in records:
                points = [(p["t"], p[reading]) for p in record.telemetry.timeline if reading in p]
                if len(points) >= 3:
                    name = f"{names.name(record)} · {record.scenario}"
                    series.append(plots.Series(name, names.color(record), points))
            flat = len({y for s in series for _, y in s.points}) < 2
            if series and not flat:
                name = f"{title}: {reading.removesuffix(' ' + unit)}"
                svg = plots.curves(series, "seconds since the start", unit, name, height=220)
                entries = list(dict.fromkeys((s.name.rpartition(" · ")[0], s.color) for s in series))
                figures.append(figure(name, svg, plots.key(entries), ""))
    return figures


def _environment(records: list[Record]) -> str:
    parts = ["<h2>Repeat it</h2>"]
    parts += [f"<pre>{escape(c)}</pre>" for c in dict.fromkeys(r.command for r in records if r.command)]
    if records:
        first = next((r for r in records if r.status == "ok"), records[0])
        environment = {"device": first.device.model_dump(), "tools": first.tools}
        text = escape(json.dumps(environment, indent=2, ensure_ascii=False))
        parts.append(f"<details><summary>Environment</summary><pre>{text}</pre></details>")
    for record in records:
        shown = record.to_json()
        for part in (shown.get("latency_ms") or {}, shown["telemetry"]):
            for bulky in ("quantiles", "blocks", "timeline"):
                part.pop(bulky, None)
        text = escape(json.dumps(shown, indent=2, ensure_ascii=False))
        name = escape(f"{record.label} · {record.device.kind} · {timed(record)}")
        parts.append(f"<details><summary>Record: {name}</summary><pre>{text}</pre></details>")
    return "".join(parts)
