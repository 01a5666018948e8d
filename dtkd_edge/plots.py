"""Plots as SVG text: no library, no script. Colours are CSS variables of page.css, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 660, 340
LEFT, RIGHT, TOP, BOTTOM = 66, 22, 16, 54
LETTER = 0.6  # width of a name's letter, as a share of its size
NAME = 8.0  # mean width of a character in a row's name
CHARACTER, LINE, GAP = 7.4, 17.0, 12.0  # of a label: mean width of a character, height of a line, distance from its dot
COLORS = 8  # series colours that the page defines: --s1 … --s8


@dataclass(frozen=True)
class Series:
    """A named line or group of points; `color` is 1 … COLORS and stays with the artefact on every plot."""

    name: str
    color: int
    points: Sequence[tuple[float, float]]
    tips: Sequence[str] = ()


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    label: str
    color: int
    y_interval: tuple[float, float] | None = None
    tip: str = ""


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover [low, high], about `count` of them (steps of 1, 2, 2.5 or 5 × 10ⁿ)."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):  # all the same: some room on both sides
        room = 0.1 * abs(low) if abs(low) > 1e-9 else 1.0
        low, high = low - room, high + room
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 × 10ⁿ (steps between them where the range is narrow) that cover [low, high]; both positive."""
    marks = (1, 2, 5) if high > 5 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    ticks = [m * 10.0**e for e in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2) for m in marks]
    first = max((i for i, t in enumerate(ticks) if t <= low * 1.001), default=0)
    last = min((i for i, t in enumerate(ticks) if t >= high * 0.999), default=len(ticks) - 1)
    return ticks[first : last + 1]


class Frame:
    """Axes, grid and the two scales of one plot."""

    def __init__(
        self, x_ticks: list[float], y_ticks: list[float], x_label: str, y_label: str, *, log_x: bool = False, height: int = HEIGHT
    ) -> None:
        self.height, self.log_x = height, log_x
        self.x0, self.x1, self.y0, self.y1 = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]
        self.parts: list[str] = []
        base, end = height - BOTTOM, WIDTH - RIGHT
        for tick in y_ticks:
            y = self.y(tick)
            self.parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{end}" y2="{y:.1f}"/>')
            self.parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
        for tick in x_ticks:
            x = self.x(tick)
            self.parts.append(f'<line class="axis" x1="{x:.1f}" y1="{base}" x2="{x:.1f}" y2="{base + 4}"/>')
            self.parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 20}" text-anchor="middle">{short(tick)}</text>')
        self.parts.append(f'<line class="axis" x1="{LEFT}" y1="{base}" x2="{end}" y2="{base}"/>')
        middle = (LEFT + end) / 2
        self.parts.append(f'<text class="label" x="{middle}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>')
        turn = (TOP + base) / 2
        self.parts.append(
            f'<text class="label" transform="translate(14 {turn}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
        )

    def x(self, value: float) -> float:
        f: Callable[[float], float] = math.log10 if self.log_x else float
        share = (f(value) - f(self.x0)) / ((f(self.x1) - f(self.x0)) or 1.0)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y0) / ((self.y1 - self.y0) or 1.0)
        return self.height - BOTTOM - share * (self.height - BOTTOM - TOP)

    def svg(self, title: str) -> str:
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(title)}">'
            f"<title>{escape(title)}</title>{''.join(self.parts)}</svg>"
        )


def short(value: float) -> str:
    if value and (abs(value) >= 10000):
        return f"{value / 1000:g}k"
    return f"{value:g}"


def scatter(points: Sequence[Point], x_label: str, y_label: str, title: str) -> str:
    """Points with labels and intervals, the x axis logarithmic, and the Pareto front (small x, large y) as a line."""
    xs = [p.x for p in points]
    ys = [v for p in points for v in (p.y_interval or (p.y, p.y))]
    frame = Frame(log_ticks(min(xs) * 0.9, max(xs) * 1.1), nice_ticks(min(ys), max(ys)), x_label, y_label, log_x=True)
    front = pareto([(p.x, p.y) for p in points])
    if len(front) > 1:
        path = " L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in front)
        frame.parts.append(
            f'<path class="front" d="M{path}"><title>Pareto front: nothing is both faster and better</title></path>'
        )
    ordered = sorted(points, key=lambda p: (p.x, -p.y))
    dots = [(frame.x(p.x), frame.y(p.y)) for p in ordered]
    for p, (x, _) in zip(ordered, dots, strict=True):
        if p.y_interval:
            low, high = (frame.y(v) for v in p.y_interval)
            frame.parts.append(f'<line class="error s{p.color}" x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}"/>')
    labels = place_labels(dots, [CHARACTER * len(p.label) for p in ordered], (LEFT, TOP, WIDTH - 4, HEIGHT - BOTTOM))
    for (x, y), (left, middle, width) in zip(dots, labels, strict=True):
        if abs(middle - y) > LINE / 2 or left - x > 2 * GAP or x - left - width > 2 * GAP:  # away from its dot
            end = left - 3 if left > x else left + width + 3
            frame.parts.append(f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{middle:.1f}"/>')
    for p, (x, y), (left, middle, width) in zip(ordered, dots, labels, strict=True):
        tip = f"<title>{escape(p.tip or p.label)}</title>"
        frame.parts.append(f'<circle class="dot s{p.color}" cx="{x:.1f}" cy="{y:.1f}" r="6">{tip}</circle>')
        anchor, text_x = ("start", left) if left > x else ("end", left + width)
        text = f'<text class="name halo" x="{text_x:.1f}" y="{middle + 4:.1f}" text-anchor="{anchor}">{escape(p.label)}</text>'
        frame.parts.append(text)
    return frame.svg(title)


def place_labels(
    dots: Sequence[tuple[float, float]], widths: Sequence[float], box: tuple[float, float, float, float]
) -> list[tuple[float, float, float]]:
    """A label beside each dot: (left edge, middle line, width), inside `box` (left, top, right, bottom) where that is possible.

    In the order given each takes the cheapest place that covers no earlier label: near its dot, over few dots, vertical bars
    and leader lines.
    """
    taken: list[tuple[float, float, float]] = []
    for (x, y), width in zip(dots, widths, strict=True):
        best, least = (x + GAP, y, width), math.inf
        for reach in (GAP, 4 * GAP, 8 * GAP, 12 * GAP):
            for left in (x + reach, x - reach - width):
                for step in range(-16, 17):
                    middle = y + step * LINE / 2
                    inside = box[0] <= left and left + width <= box[2] and box[1] + LINE / 2 <= middle <= box[3] - LINE / 2
                    if any(abs(middle - t[1]) < LINE and left < t[0] + t[2] + 6 and t[0] < left + width + 6 for t in taken):
                        continue
                    under = [(a, b) for a, b in dots if left - 8 < a < left + width + 8]
                    hidden = sum(abs(b - middle) < LINE / 2 + 6 for _, b in under)
                    cost = abs(step) / 2 + 1.5 * (reach / GAP - 1) / 3 + 0.5 * (left < x) + 0.8 * len(under) + 40 * hidden
                    cost += 0 if inside else 1000
                    if cost < least:
                        best, least = (left, middle, width), cost
        taken.append(best)
    return taken


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both (smaller x, larger y), by x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def curves(series: Sequence[Series], x_label: str, y_label: str, title: str, *, log_x: bool = False, height: int = HEIGHT) -> str:
    """One line per series."""
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    x_ticks = log_ticks(min(xs), max(xs)) if log_x else nice_ticks(min(xs), max(xs), 6)
    frame = Frame(x_ticks, nice_ticks(min(ys), max(ys)), x_label, y_label, log_x=log_x, height=height)
    for s in series:
        path = " L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in s.points)
        frame.parts.append(f'<path class="line s{s.color}" d="M{path}"><title>{escape(s.name)}</title></path>')
        for (x, y), tip in zip(s.points, s.tips, strict=False):
            if tip:
                frame.parts.append(
                    f'<circle class="dot s{s.color}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="4.5">'
                    f"<title>{escape(tip)}</title></circle>"
                )
    return frame.svg(title)


@dataclass(frozen=True)
class Row:
    """A line of `intervals`: a name, single values, their mean and the mean's standard error."""

    name: str
    values: Sequence[float]
    mean: float
    error: float | None
    color: int


def fitted(name: str, width: float, character: float = CHARACTER) -> str:
    """The name, without its middle where it is wider than so many pixels: classes are often told apart by their ends."""
    room = max(int(width / character), 3)
    if len(name) <= room:
        return name
    return f"{name[: room // 2]}…{name[len(name) - (room - 1) // 2 :]}"


def intervals(rows: Sequence[Row], x_label: str, title: str, *, zero: bool = False) -> str:
    """One line per row: every value as a faint dot, the mean as a full one, ± its standard error as a bar."""
    left, step, base = min(max(190.0, NAME * max(len(row.name) for row in rows) + 18), 280.0), 30, TOP + 8
    seen = [v for r in rows for v in (*r.values, r.mean - (r.error or 0), r.mean + (r.error or 0))] + ([0.0] if zero else [])
    ticks = nice_ticks(min(seen), max(seen), 6)
    end, height = base + step * len(rows), base + step * len(rows) + 48

    def x(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (WIDTH - RIGHT - left)

    parts = []
    for tick in ticks:
        kind = "axis" if zero and tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{x(tick):.1f}" y1="{TOP}" x2="{x(tick):.1f}" y2="{end}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{end + 18}" text-anchor="middle">{short(tick)}</text>')
    for number, row in enumerate(rows):
        y = base + step * (number + 0.5)
        tip = f"{row.name}: {row.mean:.3g}" + ("" if row.error is None else f" ± {row.error:.2g}")
        name = escape(fitted(row.name, left - 18, NAME))
        parts.append(f'<text class="name" x="{left - 14:.1f}" y="{y + 5:.1f}" text-anchor="end">{name}</text>')
        parts += [f'<circle class="dot faint s{row.color}" cx="{x(v):.1f}" cy="{y:.1f}" r="3.5"/>' for v in row.values]
        if row.error is not None:
            low, high = x(row.mean - row.error), x(row.mean + row.error)
            parts.append(f'<line class="error bar s{row.color}" x1="{low:.1f}" y1="{y:.1f}" x2="{high:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<circle class="dot s{row.color}" cx="{x(row.mean):.1f}" cy="{y:.1f}" r="6"><title>{escape(tip)}</title></circle>'
        )
    middle = (left + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def matrix(counts: Sequence[Sequence[int]], names: Sequence[str], title: str) -> str:
    """A square of counts, rows and columns of the same names; a cell's colour is its share of the row."""
    longest = max(len(name) for name in names)
    largest = 14.5  # pixels of the names' letters
    left = min(LETTER * largest * longest + 18, 190.0)
    step = (WIDTH - RIGHT - left) / len(names)
    top = left if step < LETTER * largest * longest else 26.0  # names of columns stand upright where they do not fit across
    height = top + step * len(names) + 8
    size = min(largest, 0.8 * step)
    parts = []
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        middle = top + step * (i + 0.5)
        style = f'class="name" style="font-size:{size:.1f}px"'
        shown = escape(fitted(name, left - 14, LETTER * size))
        parts.append(f'<text {style} x="{left - 8:.1f}" y="{middle + size / 3:.1f}" text-anchor="end">{shown}</text>')
        x = left + step * (i + 0.5)
        place = f'transform="translate({x + size / 3:.1f} {top - 8:.1f}) rotate(-90)"'
        if top < left:
            place = f'x="{x:.1f}" y="{top - 8:.1f}" text-anchor="middle"'
        parts.append(f"<text {style} {place}>{shown}</text>")
        total = max(sum(row), 1)
        for j, count in enumerate(row):
            share = count / total
            corner = f'x="{left + step * j:.1f}" y="{top + step * i:.1f}" width="{step - 1:.1f}" height="{step - 1:.1f}"'
            tip = f"<title>{escape(name)} → {escape(names[j])}: {count} of {total}</title>"
            parts.append(f'<rect class="cell" {corner} style="fill-opacity:{0.04 + 0.96 * share:.3f}">{tip}</rect>')
            if count and step >= 18:
                kind = "count high" if share > 0.5 else "count"
                at = f'x="{left + step * (j + 0.5) - 0.5:.1f}" y="{middle + 4:.1f}"'
                parts.append(f'<text class="{kind}" {at} text-anchor="middle">{count}</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def key(entries: Sequence[tuple[str, int]]) -> str:
    """The legend, as HTML."""
    return '<p class="key">' + "".join(f'<span><i class="s{c}"></i>{escape(n)}</span>' for n, c in entries) + "</p>"
