"""Telemetry on the HTML page: a device root whose tegrastats counts up, through the real sampler, to plots."""

from __future__ import annotations

import re
import time

import pytest
from test_compare import row
from test_telemetry import ORIN_NANO, fake_jetson

from dtkd_edge.benchmarks.page import page, series_name
from dtkd_edge.benchmarks.record import Telemetry
from dtkd_edge.benchmarks.report import agreement_line
from dtkd_edge.benchmarks.telemetry import Sampler


@pytest.fixture(scope="module")
def warming(tmp_path_factory: pytest.TempPathFactory) -> Telemetry:
    """Of a module that gets warmer, slower and hungrier line by line."""
    root = fake_jetson(tmp_path_factory.mktemp("warming"))
    tool = root / "usr/bin/tegrastats"
    lines = [
        ORIN_NANO.replace("[305]", f"[{900 - 100 * i}]")
        .replace("gpu@44.531C", f"gpu@{45 + 5 * i}C")
        .replace("2957mW", f"{3000 + 500 * i}mW")
        for i in range(6)
    ]
    head = tool.read_text().partition("\n")[0]
    tool.write_text(
        f"{head}\nimport time\nfor line in {lines!r}:\n    print(line, flush=True)\n    time.sleep(0.2)\ntime.sleep(60)\n"
    )
    with Sampler(root, interval=60) as sampler:
        sampler.label = "work"
        deadline = time.perf_counter() + 20
        while (sampler.power("work", "jetson") or 0) < 4 and time.perf_counter() < deadline:
            sampler.sample()
            time.sleep(0.05)
    return sampler.telemetry("work")


def plots_of(html: str) -> dict[str, list[list[tuple[float, float]]]]:
    """Title of each plot → the points of its lines, in pixels."""
    found = {}
    for label, svg in re.findall(r'<svg[^>]* aria-label="([^"]*)"[^>]*>(.*?)</svg>', html, re.DOTALL):
        paths = re.findall(r'<path class="line [^"]*" d="M([^"]*)"', svg)
        found[label] = [[tuple(map(float, pair.split())) for pair in path.split(" L")] for path in paths]
    return found


def test_clocks_temperatures_and_power_over_time_are_plots(warming: Telemetry) -> None:
    plots = plots_of(page([row(10).model_copy(update={"telemetry": warming})]))
    for title, reading in (("Clock: gpu", "gpu MHz"), ("Temperature: gpu", "gpu °C"), ("Power: jetson", "jetson W")):
        (line,) = plots[title]
        seen = [point[reading] for point in warming.timeline if reading in point]
        (first_x, first_y), (last_x, last_y) = line[0], line[-1]
        assert len(line) == len(seen) >= 3 and last_x > first_x
        assert (last_y > first_y) == (seen[-1] < seen[0]) == (title == "Clock: gpu"), title  # y goes down the page
    assert "Temperature: soc0" not in plots  # it never moved


def test_two_rows_share_a_plot_and_their_names_are_in_its_key(warming: Telemetry) -> None:
    rows = [row(10), row(12).model_copy(update={"artifact": "quick/onnx-int8"})]
    html = page([r.model_copy(update={"telemetry": warming}) for r in rows])
    assert len(plots_of(html)["Clock: gpu"]) == 2
    key = html.partition("<figcaption>Clock: gpu</figcaption>")[2].partition("<svg")[0]
    assert "onnx-fp32" in key and "onnx-int8" in key


def test_rows_without_telemetry_have_no_such_plots() -> None:
    assert not any(title.startswith(("Clock", "Temperature", "Power")) for title in plots_of(page([row(10)])))


def test_accuracy_is_compared_on_the_newest_clips_alone() -> None:
    """One right clip of one is not better than two in three of twelve, and no Pareto front joins the two."""
    int8 = {"artifact": "quick/onnx-int8", "created": "2026-01-01T00:00:00+00:00"}
    rows = [
        row(10, right=8, n=12).model_copy(update={"created": "2026-01-02T00:00:00+00:00"}),
        row(5, right=6, n=12).model_copy(update=int8),
        row(20, right=1, n=1).model_copy(update={"created": "2025-12-31T00:00:00+00:00"}),
    ]
    assert rows[2].accuracy is not None
    rows[2] = rows[2].model_copy(update={"accuracy": rows[2].accuracy.model_copy(update={"data": "t2"})})
    html = page(rows)
    assert "best top-1 on 12 clips" in html and "66.7 %" in html.partition("<h2>")[0]
    front = html.partition('aria-label="Accuracy against latency"')[2].partition("</svg>")[0]
    assert front.count("<circle") == 2 and "n=1)" not in front
    assert "Rows on 12 clips of d" in html and "on 1 clip of t2" in html.partition("<table>")[2].partition("</table>")[0]
    lines = [r.model_copy(update={"latency_ms": r.latency_ms.model_copy(update={"quantiles": [1.0] * 101})}) for r in rows]
    key = page(lines).partition("<figcaption>Latency distribution")[2].partition("<svg")[0]
    assert "onnx-fp32 · cpu · 12 clips of d" in key and "onnx-fp32 · cpu · 1 clip of t2" in key
    assert "clips of d" not in page(rows[:1]).partition("<table>")[2].partition("</table>")[0]  # nothing to be told apart from


def test_each_artefact_agrees_with_its_student_once() -> None:
    measured = row(10)
    assert measured.accuracy is not None
    asked = measured.model_copy(
        update={"accuracy": measured.accuracy.model_copy(update={"agreement": 1.0, "agreement_n": 12}), "agreement": 1.0}
    )
    unsupported = asked.model_copy(update={"accuracy": None, "status": "unsupported", "reason": "no GPU"})
    lines = agreement_line([asked, unsupported])
    assert lines == ["Same class as the torch student: quick/onnx-fp32 100.0 % of 12."]


def test_rows_that_differ_in_threads_alone_are_told_apart() -> None:
    rows = []
    for threads in (None, 1, 2):
        record = row(10)
        rows.append(record.model_copy(update={"device": record.device.model_copy(update={"threads": threads})}))
    kind = rows[0].device.kind
    assert [series_name(r).rpartition(" · ")[2] for r in rows] == [kind, f"{kind}, 1 thread", f"{kind}, 2 threads"]
    html = page(rows)
    assert f"{kind}, 1 thread</td>" in html and f"{kind}, 2 threads</td>" in html
