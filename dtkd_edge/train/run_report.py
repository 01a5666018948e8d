"""A finished run as one HTML page: curves, loss terms, ω, how far student and teachers agree, what is taken for what. No torch.

It is made of RUN/log.jsonl, of what goes into RUN/metrics.json, and of what RUN/predictions.npz keeps: the logits of student and
teachers on the validation clips.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge import plots
from dtkd_edge.console import counted
from dtkd_edge.files import atomic_path, write_text
from dtkd_edge.page import document, figure

NAMES = {"student": "student", "cnn": "CNN teacher", "vit": "ViT teacher"}
COLOR = {"student": 1, "cnn": 2, "vit": 3}
MOST_CLASSES = 40  # a larger matrix is read as a list of its largest cells
ENDS = 10  # classes shown from either end of a longer list
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass
class Predictions:
    """One head on the validation clips: `labels` `[n]`, `logits` per network `[n, K]`, `omega` `[n, 2]` (columns cnn, vit) where
    the method weighs teachers by sample, `index` `[n]` the clips' numbers in the catalogue."""

    classes: Sequence[str]
    labels: Ints
    logits: Mapping[str, Floats]
    omega: Floats | None = None
    index: Ints | None = None

    def answers(self, network: str) -> Ints:
        return self.logits[network].argmax(1).astype(np.int64)


def save_predictions(folder: Path, heads: Mapping[str, Predictions]) -> None:
    """RUN/predictions.npz: `HEAD/labels`, `HEAD/classes`, `HEAD/logits/NETWORK`, `HEAD/omega`, `HEAD/index`."""
    arrays: dict[str, NDArray[Any]] = {}
    for head, found in heads.items():
        arrays |= {f"{head}/labels": found.labels, f"{head}/classes": np.array(list(found.classes))}
        arrays |= {f"{head}/logits/{network}": logits for network, logits in found.logits.items()}
        if found.omega is not None:
            arrays[f"{head}/omega"] = found.omega
        if found.index is not None:
            arrays[f"{head}/index"] = found.index
    with atomic_path(folder / "predictions.npz") as aside, aside.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def write_run_report(folder: Path, name: str, metrics: Mapping[str, Any], heads: Mapping[str, Predictions]) -> Path:
    """Write RUN/report.html and return its path."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    clips = metrics["clips"]
    body = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">Method {escape(metrics["method"])}; {counted(clips["student"], "training clip")} for the student, '
        f"{clips['train']} for its teachers; {counted(clips['val'], 'validation clip')}, one view each.</p>",
        _tiles(metrics),
        _training([entry for entry in log if "epoch" in entry]),
    ]
    for head, found in heads.items():
        body.append(_head(head if len(heads) > 1 else "", found))
    path = folder / "report.html"
    write_text(path, document(name, "".join(body)))
    return path


def _tiles(metrics: Mapping[str, Any]) -> str:
    tiles = []
    for network, row in {"student": metrics.get("student"), **metrics["teachers"]}.items():
        for key, value in (row or {}).items():
            if key.endswith("_top1"):
                head = "" if key == "action_top1" else f" · {key.removesuffix('_top1')}"
                label = f"{NAMES[network]}{escape(head)}, top-1"
                tiles.append(f'<div class="tile"><b>{100 * value:.1f} %</b><span>{label}</span></div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _training(log: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy of every phase, then the student's loss terms, ω and the variance of the residual."""
    figures = []
    accuracy, legend = [], []
    for phase in dict.fromkeys(entry["phase"] for entry in log):
        entries = [entry for entry in log if entry["phase"] == phase]
        last = entries[-1]["epoch"]
        scored = [e for e in entries if any(k.startswith("val_") for k in e)]
        points = [(e["epoch"] / last, 100 * _mean(e, "val_", "_top1")) for e in scored]
        if len(points) > 1:
            accuracy.append(plots.Series(NAMES[phase], COLOR[phase], points, [f"epoch {e['epoch']}" for e in scored]))
            legend.append((f"{NAMES[phase]}, {counted(last, 'epoch')}", COLOR[phase]))
    if accuracy:
        svg = plots.curves(accuracy, "share of the phase", "validation top-1, %", "Validation accuracy")
        figures.append(figure("Validation accuracy", svg, plots.key(legend)))
    student = [entry for entry in log if entry["phase"] == "student"]
    terms = sorted({key for entry in student for key in entry if key.startswith("loss_")})
    figures += _lines(student, {t: t.removeprefix("loss_") for t in terms}, "Loss terms of the student", "mean over the epoch")
    omega = {"omega_cnn": NAMES["cnn"], "omega_vit": NAMES["vit"]}
    note = "One half: both teachers weigh alike."
    figures += _lines(student, omega, "Weight ω of the teachers", "mean ω", note, colors=[COLOR["cnn"], COLOR["vit"]])
    note = "Of f_res before it is scaled. Near 0: the target of the branch has collapsed."
    figures += _lines(student, {"residual_var": "variance"}, "Variance of the residual", "variance", note)
    return f'<h2>Training</h2><div class="plots">{"".join(figures)}</div>' if figures else ""


def _lines(
    log: Sequence[Mapping[str, Any]],
    keys: Mapping[str, str],
    title: str,
    y_label: str,
    note: str = "",
    colors: Sequence[int] = (),
) -> list[str]:
    series = []
    for number, (key, name) in enumerate(keys.items()):
        points = [(float(entry["epoch"]), float(entry[key])) for entry in log if key in entry]
        if len(points) > 1:
            color = colors[number] if colors else number % plots.COLORS + 1
            series.append(plots.Series(name, color, points))
    if not series:
        return []
    svg = plots.curves(series, "epoch", y_label, title)
    return [figure(title, svg, plots.key([(s.name, s.color) for s in series]) if len(series) > 1 else "", note)]


def _head(head: str, found: Predictions) -> str:
    suffix = f" of {head}" if head else ""
    student = found.answers("student")
    parts = []
    teachers = [network for network in found.logits if network != "student"]
    if teachers:
        parts.append(f"<h2>Agreement{escape(suffix)}</h2>{_agreement(found, teachers)}")
    figures = []
    if found.omega is not None:
        figures.append(_omega_by_class(found))
    pairs = [("label", found.labels, "student", student)]
    pairs += [(NAMES[network], found.answers(network), "student", student) for network in teachers]
    for row_name, rows_, column_name, columns in pairs:
        title = f"{row_name[0].upper()}{row_name[1:]} against {column_name}"
        figures.append(_matrix(title, row_name, rows_, columns, found.classes))
    parts.append(f'<h2>What is taken for what{escape(suffix)}</h2><div class="plots">{"".join(figures)}</div>')
    return "".join(parts)


def _omega_by_class(found: Predictions) -> str:
    """Of every class, or of the most and the least of them where they are many."""
    assert found.omega is not None
    rows = []
    for number, name in enumerate(found.classes):
        own = found.omega[found.labels == number, 1].astype(float)
        if len(own):
            error = float(own.std(ddof=1) / len(own) ** 0.5) if len(own) > 1 else None
            rows.append(plots.Row(name, [], float(own.mean()), error, COLOR["vit"]))
    title, note = "ω by class", "On the validation clips, with the finished student."
    if len(rows) > MOST_CLASSES:
        note += f" The {ENDS} classes of the largest and the {ENDS} of the smallest ω, of {len(rows)}."
        rows.sort(key=lambda row: -row.mean)
        rows = rows[:ENDS] + rows[-ENDS:]
    return figure(title, plots.intervals(rows, "mean ω of the ViT teacher, ± standard error", title), note=note)


def _agreement(found: Predictions, teachers: Sequence[str]) -> str:
    student, right = found.answers("student"), found.answers("student") == found.labels
    columns = ("same answer", "both right", "only the student right", "only the teacher right", "both wrong", "same mistake")
    head = "<tr><th>teacher</th>" + "".join(f'<th class="r">{text}</th>' for text in columns)
    lines = []
    for network in teachers:
        answers = found.answers(network)
        theirs = answers == found.labels
        wrong = ~right & ~theirs
        shares = [answers == student, right & theirs, right & ~theirs, ~right & theirs, wrong, wrong & (answers == student)]
        cells = "".join(f'<td class="r">{100 * float(share.mean()):.1f} %</td>' for share in shares)
        lines.append(f"<tr><td>{NAMES[network]}</td>{cells}</tr>")
    return f'<div class="scroll"><table>{head}</tr>{"".join(lines)}</table></div>'


def _matrix(title: str, row_name: str, rows: Ints, columns: Ints, classes: Sequence[str]) -> str:
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (rows, columns), 1)
    if len(classes) <= MOST_CLASSES:
        note = f"Rows: {row_name}. Columns: the student's answer. Number of clips; colour: share of the row."
        return figure(title, plots.matrix(counts.tolist(), classes, title), note=note)
    aside = counts * (1 - np.eye(len(classes), dtype=np.int64))
    largest = np.argsort(-aside, axis=None, kind="stable")[:20]
    lines = []
    for i, j in (divmod(int(cell), len(classes)) for cell in largest):
        if count := int(aside[i, j]):
            lines.append(f'<tr><td>{escape(classes[i])}</td><td>{escape(classes[j])}</td><td class="r">{count}</td></tr>')
    table = f'<table><tr><th>{escape(row_name)}</th><th>student</th><th class="r">clips</th></tr>{"".join(lines)}</table>'
    return figure(f"{title}: the most frequent differences", f'<div class="scroll">{table}</div>')


def _mean(entry: Mapping[str, Any], start: str, end: str) -> float:
    return float(np.mean([value for key, value in entry.items() if key.startswith(start) and key.endswith(end)]))
