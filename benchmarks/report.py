"""Records as a table on the terminal and as Markdown. The page is in page.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from dtkd_edge.benchmarks.queries import included
from dtkd_edge.benchmarks.record import NO_ACCURACY, NO_MLPERF, NOISY, Accuracy, HeadAccuracy, Record, input_of, several_inputs
from dtkd_edge.benchmarks.scenarios import SCENARIOS
from dtkd_edge.console import PIPE_WIDTH, counted

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "artefact",
    "runs on",
    "precision",
    "scenario",
    "p50 ms",
    "judged by",
    "clips/s",
    "top-1 %",
    "of limit",
    "W (mJ)",
    "throttled",
    "notes",
)
EVERYWHERE = ("sse4_2", "avx", "fma", "f16c", "asimd")  # instruction sets that say nothing about a machine
NOTES_WIDTH = 27  # that the notes need at least; they wrap
LEVELS = 4
OTHERS = 0.1  # share of the CPUs that others may take before the row says so
RIGHT = ("p50 ms", "judged by", "clips/s", "top-1 %", "of limit", "W (mJ)")


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, without exponents; '–' for nothing."""
    if value is None:
        return "–"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".") if value else "0"


def judged(record: Record) -> str:
    """The scenario's own percentile with its interval: 'p90 2.31 (2.28–2.40)'."""
    scenario, latency = SCENARIOS.get(record.scenario), record.latency_ms
    if scenario is None or latency is None:
        return "–"
    if record.live is not None:
        return f"age p90 {number(record.live.age_p90_ms)}"
    if scenario.percent is None:
        return f"{_what(record)}/s"
    low, high = latency.interval
    return (
        f"p{scenario.percent:g} {number(getattr(latency, f'p{scenario.percent:g}'))} "
        f"({number(low) if low is not None else '0'}–{number(high) if high is not None else '?'})"
    )


def remarks(record: Record) -> list[str]:
    """What a reader must know before believing the row."""
    out = []
    if record.is_noisy:
        why = [f"halves differ by {100 * (record.noisy or 0):.0f} %"] if (record.noisy or 0) > NOISY else []
        why += [f"p50 {100 * (record.drift or 0):+.0f} % against the last bench"] if abs(record.drift or 0) > NOISY else []
        out.append(f"noisy: {', '.join(why)}")
    if (record.telemetry.other_load or 0) > OTHERS:
        out.append(f"other processes took {100 * (record.telemetry.other_load or 0):.0f} % of the CPUs")
    if record.live is not None:
        out.append(f"{record.live.dropped} of {record.live.frames} frames dropped")
    if record.roofline is not None and record.roofline.share > 1:
        narrow = (record.effective_precision or record.precision) != "fp32"
        out.append(
            "beyond the limit: " + ("its arithmetic is narrower than float32" if narrow else "the machine was busy when measured")
        )
    if record.verified is False:
        out.append("unverified")
    return out + [note for note in record.notes if not note.startswith(NO_ACCURACY)]


def precision(record: Record) -> str:
    effective = record.effective_precision
    return record.precision if effective in (None, record.precision) else f"{record.precision} (runs {effective})"


def per_query(record: Record) -> str:
    """Latency is per query; say so where that is not one clip (stream: one frame)."""
    return f" /{record.clips_per_query} {_what(record)}" if record.clips_per_query > 1 else ""


def timed(record: Record) -> str:
    """The scenario, and what is timed besides inference: 'single-stream + decode'."""
    more = included(record.timed_region)
    return f"{record.scenario} + {more}" if more else record.scenario


def region_line(region: str) -> str:
    """What the timed region holds; where it is inference alone, also what it does not."""
    more = included(region)
    return f"Timed, + {more}: {region}." if more else f"Timed: {region}; neither decoding nor resizing."


def _what(record: Record) -> str:
    """What is counted: a stream artefact gives a label for every frame."""
    return "frames" if record.mode == "stream" else "clips"


def threads(record: Record) -> str:
    """'2 threads', where the bench was told how many."""
    count = record.device.threads
    return counted(count, "thread") if count else ""


def place(record: Record) -> str:
    """Where a row was measured: 'cpu', 'jetson gpu · user@host', 'cpu, 1 thread'."""
    device = record.device
    unit = f" {device.unit}" if device.kind == "jetson" and device.unit else ""
    own = ", ".join(part for part in (device.kind + unit, threads(record)) if part)
    return " · ".join(part for part in (own, device.host) if part)


def cells(record: Record) -> tuple[str, ...]:
    where = " · ".join(part for part in (record.backend, place(record)) if part)
    if record.status != "ok":
        return (
            record.label,
            where,
            precision(record),
            record.scenario,
            *["–"] * 7,
            f"{record.status}: {record.reason}",
        )
    accuracy = record.accuracy
    half = 50 * (accuracy.top1_interval[1] - accuracy.top1_interval[0]) if accuracy else 0.0
    return (
        record.label,
        where,
        precision(record),
        timed(record),
        number(record.latency_ms.p50 if record.latency_ms else None) + per_query(record),
        judged(record),
        number(record.throughput) + (" frames" if record.mode == "stream" else ""),
        f"{100 * accuracy.top1:.1f} ± {half:.1f}" if accuracy else "–",
        f"{100 * record.roofline.share:.0f} % {record.roofline.bound}" if record.roofline else "–",
        number(record.power_w) + (f" ({number(record.energy_mj)})" if record.energy_mj else ""),
        record.telemetry.throttled,
        "; ".join(remarks(record)),
    )


def shown(records: Sequence[Record]) -> list[Record]:
    """The records as rows: those of one artefact and device that are not ok for one reason are one, with all its scenarios. Where
    rows are of several inputs, each says its own."""
    rows: dict[object, Record] = {}
    several = several_inputs(records)
    for number, record in enumerate(records):
        key = (record.label, record.device.name, record.device.host, record.status, record.reason)
        alike = rows.get(key) if record.status != "ok" else None
        names = f"{alike.scenario}, {record.scenario}" if alike else record.scenario
        notes = [*([f"on {input_of(record)}"] if several and input_of(record) else []), *record.notes]
        rows[number if record.status == "ok" else key] = record.model_copy(update={"scenario": names, "notes": notes})
    return list(rows.values())


def legend(records: list[Record]) -> list[str]:
    """The lines below a table: devices, what was timed, on what input, how accuracy was taken."""
    lines = []
    for device in dict.fromkeys(device_line(r) for r in records if r.status == "ok"):
        lines.append(device)
    for row, settings in dict.fromkeys((f"{r.label}, {r.scenario}", tuple(r.runtime.items())) for r in records if r.runtime):
        lines.append(f"Runtime: {row}: {', '.join(f'{name} {value}' for name, value in settings)}.")
    for region in dict.fromkeys(r.timed_region for r in records if r.timed_region):
        lines.append(region_line(region))
    for source in dict.fromkeys(r.input_source for r in records if r.input_source):
        lines.append(f"Input: {source}.")
    for gflops, gbs in dict.fromkeys((r.roofline.gflops, r.roofline.gbs) for r in records if r.roofline):
        lines.append(
            f"Limit: float32 matrix products at {number(gflops)} GFLOP/s, memory at {number(gbs)} GB/s, both measured here; "
            "a query's MACs, and its weights and input moved once; 'of limit': the least time so, as a share of the median."
        )
    for note in dict.fromkeys(n for r in records for n in r.telemetry.notes):
        lines.append(f"Not read: {note}.")
    for note in dict.fromkeys(n for r in records for n in r.notes if n.startswith(NO_ACCURACY)):
        lines.append(f"{note[0].upper()}{note[1:]}.")
    lines += list(dict.fromkeys(accuracy_line(r.accuracy, r.views) for r in records if r.accuracy))
    lines += list(dict.fromkeys(heads_line(r.label, r.accuracy.heads) for r in records if r.accuracy and r.accuracy.heads))
    if any(r.accuracy and r.runtime and r.asked and r.asked.hint != "latency" for r in records):
        lines.append("Accuracy was measured on the model set up for latency, in rows of throughput too.")
    if any(r.energy_mj for r in records):
        lines.append("W: mean of the device's own readings while it ran; mJ: of a clip (stream: a frame), W over clips/s.")
    lines += agreement_line(records)
    timed = [r.latency_ms for r in records if r.latency_ms and r.status == "ok"]
    if timed:
        far, queries = sum(t.outliers for t in timed), sum(t.n for t in timed)
        lines.append(
            "Percentiles are nearest-rank, intervals 95 % from order statistics; no outlier is dropped "
            f"(far ones: {far:,} of {queries:,} queries)."
        )
    lines.append(NO_MLPERF)
    return lines


def agreement_line(records: list[Record]) -> list[str]:
    """How often an artefact names the class that the torch student does: on the data's clips, or else at its export."""
    shares: dict[str, None] = {}
    asked = {r.label for r in records if r.accuracy and r.accuracy.agreement is not None}
    for r in records:
        if r.accuracy and r.accuracy.agreement is not None:
            shares[f"{r.label} {100 * r.accuracy.agreement:.1f} % of {r.accuracy.agreement_n}"] = None
        elif r.agreement is not None and r.label not in asked:
            shares[f"{r.label} {100 * r.agreement:.1f} % at its export"] = None
    return [f"Same class as the torch student: {', '.join(shares)}."] if shares else []


def accuracy_line(accuracy: Accuracy, views: str) -> str:
    left_out = f"; {accuracy.broken} broken left out" if accuracy.broken else ""
    left_out += f"; {accuracy.unknown} of classes that the artefact does not know left out" if accuracy.unknown else ""
    return f"Accuracy: {counted(accuracy.n, 'clip')} of {accuracy.data}, views={views}, 95 % Wilson interval{left_out}."


def heads_line(label: str, heads: Mapping[str, HeadAccuracy]) -> str:
    """The table has room for the first head only."""
    shares = (f"{head} {100 * accuracy.top1:.1f} / {100 * accuracy.top5:.1f}" for head, accuracy in heads.items())
    return f"Each head of {label}, top-1 / top-5 %: {', '.join(shares)}."


def device_line(record: Record) -> str:
    device = record.device
    cpu, gpu, jetson = (device.details.get(k, {}) for k in ("cpu", "nvidia", "jetson"))
    parts = [device.name]
    if cpu:
        parts.append(f"{cpu.get('affinity') or cpu.get('logical_cpus')} CPUs")
        parts.append("virtual machine" if cpu.get("virtual") else "")
        parts.append(f"governor {cpu['governor']}" if cpu.get("governor") else "")
        sets = [name for name in cpu.get("instruction_sets", ()) if name not in EVERYWHERE]
        parts.append(" ".join(sets))
    if gpu:
        parts.append(f"driver {gpu.get('driver')}")
    if jetson:
        parts.append(f"JetPack {jetson.get('jetpack')} (L4T {jetson.get('l4t')}), power mode {jetson.get('power_mode')}")
    parts.append(threads(record))
    parts.append(f"at {device.host}" if device.host else "")
    return "Device: " + ", ".join(p for p in parts if p) + "."


def table(records: list[Record], width: int = PIPE_WIDTH) -> tuple[Table, list[str]]:
    """The rows in `width` characters, and the notes that then stand below them.

    Where not all of it fits, the words that are needed least go, so that no number is cut.
    """
    from rich.table import Table

    records = shown(records)
    for level in range(LEVELS):
        names, rows = _fitted(records, level)
        widths = [max(len(text) for text in column) for column in zip(names, *rows, strict=True) if column[0] != "notes"]
        if sum(widths) + 2 * len(widths) + (NOTES_WIDTH if "notes" in names else 0) - 2 <= width:
            break
    out = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        justify: Literal["left", "right"] = "right" if name in RIGHT else "left"
        out.add_column(name, justify=justify, overflow="fold", no_wrap=name != "notes")
    for row in rows:
        out.add_row(*row)
    below: dict[tuple[str, str], list[str]] = {}
    for record in records if "notes" not in names else []:
        if text := cells(record)[-1]:
            below.setdefault((record.label, text), []).append(timed(record))
    return out, [f"{artifact} ({', '.join(scenarios)}): {text}" for (artifact, text), scenarios in below.items()]


def _fitted(records: list[Record], level: int) -> tuple[list[str], list[list[str]]]:
    """Column names and rows. level 0: all; 1: artefacts by their folders, no notes, only what ran; 2: no runtimes, no intervals;
    3: the fewest columns."""
    names, gone = list(COLUMNS), set()
    if level >= 1:
        records, gone = [r for r in records if r.status == "ok"] or records, {"notes"}
    rows = [list(cells(r)) for r in records]
    folders = {r.artifact: r.artifact.rpartition("/")[2] for r in records}
    for record, row in zip(records, rows, strict=True):
        if level >= 1 and len(set(folders.values())) == len(folders):
            row[0] = folders[record.artifact]
        if level >= 2:
            row[1] = " · ".join(part for part in (record.device.kind, record.device.host) if part)
            row[5] = row[5].partition(" (")[0]
    if level >= 3:
        gone |= {"precision", "throttled", "of limit", *(["runs on"] if len({row[1] for row in rows}) == 1 else [])}
    used = [i for i, n in enumerate(names) if n not in gone and (i < 5 or any(row[i] not in ("–", "") for row in rows))]
    return [names[i] for i in used], [[row[i] for i in used] for row in rows]


def markdown(records: list[Record]) -> str:
    """A GitHub table, the legend, and the command that makes it again."""
    rows = [cells(r) for r in shown(records)]
    lines = [
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "|".join("---:" if c in RIGHT else "---" for c in COLUMNS) + "|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
        "",
        *(f"{line}  " for line in legend(records)),
    ]
    for command in dict.fromkeys(r.command for r in records if r.command):
        lines += ["", f"    {command}"]
    return "\n".join(lines) + "\n"
