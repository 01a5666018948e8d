"""Two benches of the same things: what changed, by how much, and whether that is more than noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtkd_edge.benchmarks.record import Latency, Record, read_records
from dtkd_edge.benchmarks.report import number
from dtkd_edge.benchmarks.scenarios import SCENARIOS
from dtkd_edge.benchmarks.statistics import percentile_ratio, ratio_interval, share_difference
from dtkd_edge.console import counted, print_table, say, write_result
from dtkd_edge.errors import InputError, VerificationError

if TYPE_CHECKING:
    from rich.table import Table

Key = tuple[str, ...]
LATENCY = "ms/clip"  # not of a query, whose clips may be others elsewhere
LEAST_BLOCKS = 5  # fewer say nothing about noise


@dataclass(frozen=True)
class Change:
    """One number of one row, before and after. change: latency as a ratio − 1, top-1 in points; low, high: its interval."""

    key: Key
    what: str
    old: float | None
    new: float | None
    change: float | None
    low: float | None
    high: float | None
    verdict: str  # same, better, worse, REGRESSION, too short, gone, new, or the new row's status

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "key": list(self.key)}


def key_of(record: Record) -> Key:
    """What makes two rows comparable: the same kind of artefact on the same device, timed alike."""
    return (
        record.artifact.rpartition("/")[2],
        record.device.name + (f" at {record.device.host}" if record.device.host else ""),
        record.backend or record.target,
        str(record.device.threads or "auto threads"),
        record.scenario,
        record.timed_region,
    )


def _by_key(records: list[Record]) -> dict[Key, Record]:
    rows: dict[Key, Record] = {}
    for record in records:
        other = rows.setdefault(key_of(record), record)
        if other is not record and other.artifact != record.artifact:  # which of the two is meant?
            raise InputError(
                f"{other.artifact} and {record.artifact} cannot be told apart: both are {key_of(record)[0]}, {record.scenario}",
                "bench each run into a file of its own, then compare the files",
            )
        rows[key_of(record)] = record
    return rows


def compare(old: list[Record], new: list[Record], *, latency_limit: float = 0.05, accuracy_limit: float = 1.0) -> list[Change]:
    """Changes of latency per clip (ratios), by its median and by the percentile that the scenario is judged by, and of top-1
    (points), row by row.

    A regression is worse by more than the limit with an interval that leaves out 'no change'. The interval speaks for these two
    runs: what differs between any two runs of one machine (load, clocks) is not in it, so bench twice before believing 5 %.
    """
    before, after = _by_key(old), _by_key(new)
    changes: list[Change] = []
    seen: set[Key] = set()
    for key, a in before.items():
        b = after.get(key)
        if b is None:
            missing = [r.status for r in new if r.status != "ok" and key_of(r)[0] == key[0] and r.scenario == a.scenario]
            if a.status == "ok":
                changes.append(Change(key, "row", None, None, None, None, None, missing[0] if missing else "gone"))
            continue
        if a.latency_ms and b.latency_ms:
            changes += _latency(key, (a.latency_ms, a.clips_per_query), (b.latency_ms, b.clips_per_query), latency_limit)
        if a.accuracy and b.accuracy and (rated := key[:3]) not in seen:  # every scenario's row repeats it
            seen.add(rated)
            counts = [(round(r.top1 * r.n), r.n) for r in (a.accuracy, b.accuracy)]
            points, low, high = (100 * v for v in share_difference(*counts))
            verdict = _verdict(-points, -high, -low, accuracy_limit)
            changes.append(Change(key, "top-1 %", 100 * a.accuracy.top1, 100 * b.accuracy.top1, points, low, high, verdict))
    changes += [
        Change(key, "row", None, None, None, None, None, "new")
        for key, r in after.items()
        if key not in before and r.status == "ok"
    ]
    return changes


def _latency(key: Key, old: tuple[Latency, int], new: tuple[Latency, int], limit: float) -> list[Change]:
    """Of one row; each with the clips of a query."""
    (a, clips_a), (b, clips_b) = old, new
    changes = []
    if a.blocks and b.blocks:
        ratio, low, high = ratio_interval([ms / clips_a for ms in a.blocks], [ms / clips_b for ms in b.blocks])
        verdict = _verdict(ratio - 1, low - 1, high - 1, limit)
        if min(len(a.blocks), len(b.blocks)) < LEAST_BLOCKS:
            verdict = "too short"
        changes.append(Change(key, f"p50 {LATENCY}", a.p50 / clips_a, b.p50 / clips_b, ratio - 1, low - 1, high - 1, verdict))
    scenario = SCENARIOS.get(key[4])
    if scenario is None or scenario.metric not in ("p90", "p99") or scenario.name == "live":  # live: judged by its labels' age
        return changes
    before, after = (getattr(row, scenario.metric) / clips for row, clips in (old, new))
    bounds = [[None if v is None else v / clips for v in row.interval] for row, clips in (old, new)]
    change, *ends = percentile_ratio((before, *bounds[0]), (after, *bounds[1]))
    least, most = (None if end is None else end - 1 for end in ends)
    verdict = "too short" if least is None or most is None else _verdict(change - 1, least, most, limit)
    return [*changes, Change(key, f"{scenario.metric} {LATENCY}", before, after, change - 1, least, most, verdict)]


def _verdict(worse_by: float, low: float, high: float, limit: float) -> str:
    """From how much worse it got, with the interval of that."""
    if low <= 0 <= high:
        return "same"
    if worse_by < 0:
        return "better"
    return "REGRESSION" if worse_by > limit else "worse"


def table(changes: list[Change]) -> Table:
    from rich.table import Table

    out = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("artefact", "device", "scenario", "what", "old", "new", "change (95 %)", "verdict"):
        out.add_column(name, justify="right" if name in ("old", "new", "change (95 %)") else "left")
    for c in changes:
        amount = "–"
        if c.change is not None:
            scale, unit = (100, " %") if c.what.endswith(LATENCY) else (1, " points")
            low, high = ("?" if end is None else f"{scale * end:+.1f}" for end in (c.low, c.high))
            amount = f"{scale * c.change:+.1f}{unit} ({low} … {high})"
        device = f"{c.key[2]} · {c.key[1]}"
        out.add_row(c.key[0], device, c.key[4], c.what, number(c.old), number(c.new), amount, c.verdict)
    return out


def compare_files(
    old: Path, new: Path, *, latency_limit: float = 0.05, accuracy_limit: float = 1.0, json: str | None = None
) -> list[Change]:
    """`bench --compare OLD NEW`. Raises VerificationError (exit 5) on a regression, InputError where nothing can be compared."""
    changes = compare(read_records(old), read_records(new), latency_limit=latency_limit, accuracy_limit=accuracy_limit)
    if not any(c.change is not None for c in changes):
        raise InputError(
            f"{old} and {new}: no row in common", "compare benches of the same artefacts, device, scenario and options"
        )
    if json:
        write_result([c.to_json() for c in changes], json)
    if json != "-":
        print_table(table(changes))
    say(f"limits: latency {100 * latency_limit:g} %, top-1 {accuracy_limit:g} points; intervals hold within these two runs")
    bad = [c for c in changes if c.verdict == "REGRESSION"]
    if bad:
        names = ", ".join(dict.fromkeys(f"{c.key[0]} {c.key[4]} {c.what}" for c in bad))
        raise VerificationError(f"{counted(len(bad), 'regression')}: {names}", "see the table; bench again if noisy")
    return changes
