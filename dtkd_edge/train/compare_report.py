"""What `dtkd-edge compare` found, as a page with two plots and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from html import escape
from typing import Any

from dtkd_edge import plots
from dtkd_edge.console import counted
from dtkd_edge.page import document, figure

OTHER, REFERENCE, TEACHER = 8, 1, 2  # colours


def csv_text(result: dict[str, Any]) -> str:
    """`method,seed,top1`, one line per training."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "seed", "top1"])
    for name, row in result["rows"].items():
        writer.writerows((name, seed, f"{score:.6f}") for seed, score in zip(result["seeds"], row["top1"], strict=True))
    return out.getvalue()


def compare_page(result: dict[str, Any]) -> str:
    """The whole page; shares become percent, differences points."""
    rows, reference = result["rows"], result["reference"]
    title = f"{result['recipe']}: {reference} and others"
    scores = [
        plots.Row(name, [100 * v for v in row["top1"]], 100 * row["mean"], _percent(row["se"]), _color(name, reference))
        for name, row in rows.items()
    ]
    paired = []
    for name, row in rows.items():
        if "paired" in row:
            differences = [100 * (a - b) for a, b in zip(rows[reference]["top1"], row["top1"], strict=True)]
            error = _percent(row["paired"]["se"])
            paired.append(plots.Row(name, differences, 100 * row["paired"]["mean"], error, REFERENCE))
    note = "Faint: single seeds. Full: the mean, with a bar of one standard error to either side."
    figures = [figure("Validation accuracy", plots.intervals(scores, "top-1, %", "Validation accuracy"), note=note)]
    if paired:
        svg = plots.intervals(paired, "points of top-1, same seed, same teachers", "Paired differences", zero=True)
        figures.append(figure(f"What {reference} gains over", svg, note="Right of zero: better. Left of it: worse."))
    each = ", each with clips of its own held out" if result.get("resplit") else ""
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">Validation top-1, mean ± standard error of {counted(len(result["seeds"]), "seed")}{each}. '
        "Teachers, splits and schedule are the same for every method.</p>",
        _table(result),
        f'<h2>Plots</h2><div class="plots">{"".join(figures)}</div>',
        f"<h2>Repeat it</h2><pre>{escape(result['command'])}</pre>",
    ]
    return document(title, "".join(body))


def columns(reference: str) -> tuple[str, ...]:
    return "method", "top-1", "std", f"{reference} minus it (paired)"


def cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table as text, one row per method: mean ± standard error, standard deviation, paired difference; percent, points."""

    def percent(share: float | None, before: str = "") -> str:
        return "" if share is None else f"{before}{100 * share:.1f}"

    lines: list[tuple[str, ...]] = []
    for name, row in result["rows"].items():
        paired = row.get("paired")
        difference = f"{100 * paired['mean']:+.1f}{percent(paired['se'], ' ± ')}" if paired else ""
        lines.append((name, f"{percent(row['mean'])}{percent(row['se'], ' ± ')}", percent(row["std"]), difference))
    return lines


def _table(result: dict[str, Any]) -> str:
    def line(tag: str, texts: Iterable[str]) -> str:
        first, *numbers = texts
        right = "".join(f'<{tag} class="r">{escape(text)}</{tag}>' for text in numbers)
        return f"<tr><{tag}>{escape(first)}</{tag}>{right}</tr>"

    rows = "".join(line("td", row) for row in cells(result))
    return f'<div class="scroll"><table>{line("th", columns(result["reference"]))}{rows}</table></div>'


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _color(name: str, reference: str) -> int:
    return REFERENCE if name == reference else TEACHER if name.startswith("teacher ") else OTHER
