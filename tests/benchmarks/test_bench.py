"""The whole command on real artefacts, real runtimes and real mp4 files."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from deploy_cases import edit_manifest, write_counter
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks.command import bench
from dtkd_edge.benchmarks.page import page
from dtkd_edge.benchmarks.queries import make_inputs, make_query
from dtkd_edge.benchmarks.record import Record, parse_records, read_records
from dtkd_edge.benchmarks.report import legend, markdown, number, table
from dtkd_edge.benchmarks.scenarios import SCENARIOS
from dtkd_edge.data.catalogue import open_split
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.errors import InputError, MissingDevice, UsageError
from dtkd_edge.plots import CHARACTER, HEIGHT, LINE, WIDTH, Point, log_ticks, nice_ticks, pareto, scatter
from dtkd_edge.preprocess import Preprocess
from dtkd_edge.recipe import DataConfig
from dtkd_edge.video import read_input

Main = Callable[..., tuple[int, str, str]]
QUICK: dict[str, Any] = {"min_seconds": 0.1, "min_queries": 20, "warmup": 0.1}
WORDS = ["--min-seconds", "0.1", "--min-queries", "20", "--warmup", "0.1"]


def run_cli(*args: object, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dtkd_edge", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **(env or {})}
    )


@pytest.fixture(scope="module")
def records(
    onnx_artifact: Path, openvino_artifact: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Record]]:
    """One bench of two artefacts in a run folder, both default scenarios, with accuracy."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    for artifact in (onnx_artifact, openvino_artifact):
        shutil.copytree(artifact, run / "export" / artifact.name)
    recipe = f"name: tiny\nstudent: {{model: tsm_tiny}}\ndata: {{kind: folder, root: {videos}, val_share: 0.4}}\n"
    (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
    return run, bench([run], device="cpu", threads=1, **QUICK)


def test_one_record_per_artefact_and_scenario(records: tuple[Path, list[Record]]) -> None:
    run, rows = records
    assert [(r.target, r.scenario) for r in rows] == [
        ("onnx", "single-stream"), ("openvino", "single-stream"), ("onnx", "offline"), ("openvino", "offline"),
    ]  # fmt: skip
    for row in rows:
        latency = row.latency_ms
        assert row.status == "ok" and latency is not None and latency.n >= 20
        assert latency.min <= latency.p50 <= latency.p90 <= latency.p99 <= latency.max
        assert row.throughput is not None
        assert row.throughput == pytest.approx(row.clips_per_query * 1e3 / latency.mean, rel=0.01)
        assert row.backend in ("onnxruntime", "openvino") and row.effective_precision == "fp32"
        assert row.device.kind == "cpu" and row.device.name and row.device.details["cpu"]["logical_cpus"]
        assert row.telemetry.throttled in ("yes", "no", "unknown")
        assert row.timed_region.startswith("uint8 frames") and row.views == "1x1"
        assert row.tools["onnxruntime"] and row.files
        assert "--min-queries 20" in row.command and "--threads 1" in row.command
        hint = {"single-stream": "LATENCY", "offline": "THROUGHPUT"}[row.scenario]
        assert row.runtime.get("PERFORMANCE_HINT", hint) == hint and ("NUM_STREAMS" in row.runtime) == (row.target == "openvino")
    assert any(
        f"offline: PERFORMANCE_HINT THROUGHPUT, NUM_STREAMS {rows[3].runtime['NUM_STREAMS']}" in line for line in legend(rows)
    )
    assert read_records(run / "bench.jsonl") == rows


def test_accuracy_is_that_of_the_artefact_on_the_runs_validation_clips(records: tuple[Path, list[Record]], videos: Path) -> None:
    run, rows = records
    split = open_split(DataConfig(kind="folder", root=videos, val_share=0.4), "val")
    artifact = Artifact.open(run / "export" / "onnx-fp32")
    right = seen = 0
    with open_backend(artifact, device="cpu") as backend:
        for clip in (split[i] for i in range(len(split))):
            if clip.path.name == "broken.mp4":
                continue
            logits = backend.run(read_input(clip.path, artifact.manifest.preprocess))["action"][0]
            names = artifact.manifest.labels["action"]
            right += names[int(np.argmax(logits))] == split.classes["action"][clip.labels["action"]]
            seen += 1
    found = rows[0].accuracy
    assert found is not None and found.n == seen and found.top1 == pytest.approx(right / seen)
    assert found.top1_interval[0] <= found.top1 <= found.top1_interval[1] and found.top5 >= found.top1
    assert rows[1].accuracy == found  # the same graph in another runtime


def test_the_page_is_one_whole_document_without_scripts_or_links(records: tuple[Path, list[Record]]) -> None:
    run, rows = records
    text = (run / "bench.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|https?://|url\(|@import|src=", text)
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) >= 3
    for drawing in drawings:
        tree = ElementTree.fromstring(drawing)
        assert "nan" not in drawing and "inf" not in drawing
        for dot in tree.iter("circle"):
            assert 0 <= float(dot.get("cx", "")) <= 660 and 0 <= float(dot.get("cy", "")) <= 340
    assert "onnx-fp32 · cpu" in text and rows[0].command.split()[-1] in text


def test_hostile_names_stay_text(records: tuple[Path, list[Record]]) -> None:
    bad = "<script>alert(1)</script>|x"
    row = records[1][0].model_copy(update={"artifact": f"{bad}/{bad}", "reason": bad, "notes": [bad]})

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag != "script"

    Tags().feed(page([row, row.model_copy(update={"status": "unsupported"})]))
    assert "\\|x" in markdown([row])


def test_records_of_another_schema_or_broken_are_refused(records: tuple[Path, list[Record]], tmp_path: Path) -> None:
    line = json.dumps(records[1][0].to_json())
    assert parse_records(f"[{line}, {line}]", "x") == [records[1][0]] * 2
    for text, message in {
        "": "no bench record",
        "{": "not JSON",
        line.replace("dtkd-edge/bench/1", "dtkd-edge/bench/9"): "schema is 'dtkd-edge/bench/9'",
        line.replace('"scenario": "single-stream"', '"scenario": 3'): "record 1: scenario",
        '"x"': "schema is None",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            parse_records(text, "f.jsonl")
    with pytest.raises(InputError, match="not readable"):
        read_records(tmp_path / "none.jsonl")


def test_json_on_stdout_is_json_and_nothing_else(run_folder: Path) -> None:
    done = run_cli(
        "bench", run_folder, "--scenario", "single-stream", "--clips", 2, "--json", "-", *WORDS, cwd=run_folder.parent.parent
    )
    assert done.returncode == 0, done.stderr
    rows = parse_records(done.stdout, "stdout")
    assert len(rows) == 2 and rows[0].accuracy is not None and rows[0].accuracy.n <= 2
    assert "bench.html" in done.stderr


def test_the_newest_run_is_the_default(run_folder: Path, main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder.parent.parent)
    code, out, said = main("bench", "--device", "cpu", "--clips", 0, *WORDS)
    assert code == 0, said
    assert "onnx-fp32" in out and "openvino-fp32" in out
    assert "no MLPerf results" in out
    assert (run_folder / "bench.html").is_file()


def test_all_scenarios_and_the_whole_way_from_the_file(onnx_artifact: Path, videos: Path, tmp_path: Path) -> None:
    rows = bench(
        [onnx_artifact], device="cpu", scenarios=["single-stream,multi-stream", "offline", "live"], data=videos, clips=0,
        include="decode", report=tmp_path / "r.html", md=tmp_path / "r.md", json=str(tmp_path / "r.jsonl"), **QUICK,
    )  # fmt: skip
    assert [r.clips_per_query for r in rows] == [1, 8, 8, 1]
    assert all(r.timed_region.startswith("decode the file + resize and crop + uint8") for r in rows)
    assert all(r.accuracy is None and r.input_source == str(videos) for r in rows)
    live = rows[3].live
    assert live is not None and live.frames >= 28 and live.age_p90_ms > 0
    assert rows[1].latency_ms is not None and rows[0].latency_ms is not None
    assert rows[1].latency_ms.p50 > rows[0].latency_ms.p50  # eight clips take longer than one
    assert "| tiny-onnx/" in (tmp_path / "r.md").read_text(encoding="utf-8")
    for file in ("r.md", "r.html"):  # each says at the row what was timed, and below the table what that is
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert "single-stream + decode" in text and "Timed, + decode: decode the file + resize and crop + uint8" in text
    assert len(read_records(tmp_path / "r.jsonl")) == 4


def test_decode_without_videos_is_a_usage_error(onnx_artifact: Path) -> None:
    with pytest.raises(UsageError, match="no video to decode"):
        bench([onnx_artifact], device="cpu", include="decode", **QUICK)
    with pytest.raises(UsageError, match="--include cook"):
        bench([onnx_artifact], include="cook")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--device", "jetson"], 4, "--host user@address"),
        (["--device", "tpu"], 2, "not a device"),
        (["--scenario", "server"], 2, "choose from: single-stream"),
        (["--data", "nowhere"], 3, "no such folder"),
        (["--set", "train.lr=3"], 2, "data.… only"),
        (["--min-seconds", "9", "--max-seconds", "1"], 2, "--max-seconds"),
        (["missing"], 3, "no artefact here"),
    ],
)
def test_what_cannot_be_done_is_two_lines_and_a_code(
    args: list[str], code: int, words: str, run_folder: Path, main: Main
) -> None:
    ended, out, said = main("bench", *([] if args[0] == "missing" else [run_folder]), *args)
    assert ended == code, said
    assert said.startswith("error: ") and "\n  fix: " in said and words in said
    assert len(said.splitlines()) == 2 and not out


def test_cuda_that_is_not_here(run_folder: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA driver")
    done = run_cli("bench", run_folder, "--device", "cuda", cwd=run_folder.parent)
    assert done.returncode == 4 and "no NVIDIA GPU is usable here" in done.stderr and "--device cpu" in done.stderr


def test_what_a_device_cannot_run_is_a_row(run_folder: Path, onnx_artifact: Path) -> None:
    engine = run_folder / "export" / "tensorrt-fp16"
    shutil.copytree(onnx_artifact, engine)
    edit_manifest(engine, target="tensorrt")
    rows = bench([run_folder], device="cpu", scenarios=["single-stream"], clips=0, **QUICK)
    states = {r.target: (r.status, r.reason) for r in rows}
    assert states["onnx"] == ("ok", None)
    assert states["tensorrt"][0] == "unsupported" and "NVIDIA GPU" in (states["tensorrt"][1] or "")
    text = (run_folder / "bench.html").read_text(encoding="utf-8")
    assert "unsupported: --device cpu: a TensorRT engine" in text
    with pytest.raises(MissingDevice, match="nothing here runs on cpu"):
        bench([engine], device="cpu", clips=0, **QUICK)


def test_a_run_that_cannot_be_written_to_is_measured_all_the_same(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "bench.jsonl").mkdir()  # root may write anywhere: a folder in the way stands for a read-only disk
    files: dict[str, Any] = {"json": str(tmp_path / "r.jsonl"), "report": tmp_path / "r.html"}
    rows = bench([run_folder], device="cpu", scenarios=["single-stream"], clips=0, **files, **QUICK)
    said = capsys.readouterr()
    assert len(rows) == len(read_records(tmp_path / "r.jsonl")) == 2 and (tmp_path / "r.html").is_file()
    assert said.err.count("not kept: ") == 1 and "onnx-fp32" in said.out


@pytest.mark.slow
def test_ctrl_c_keeps_the_rows_that_are_whole(run_folder: Path) -> None:
    command = [sys.executable, "-m", "dtkd_edge", "bench", run_folder, "--clips", "0", "--min-seconds", "1.5", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=run_folder) as process:
        deadline = time.perf_counter() + 60
        while not (run_folder / "bench.jsonl").exists() and time.perf_counter() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert "single-stream" in out
    rows = read_records(run_folder / "bench.jsonl")
    assert {r.scenario for r in rows} == {"single-stream"}
    assert (run_folder / "bench.html").is_file()


def test_the_first_artefact_does_not_pay_for_the_runtimes_library(onnx_artifact: Path, tmp_path: Path) -> None:
    """Equal artefacts: the first one's figures would be several times the other's if importing and making inputs counted."""
    copies = [shutil.copytree(onnx_artifact, tmp_path / name) for name in ("one", "two")]
    words = ["--device", "cpu", "--threads", 1, "--scenario", "single-stream", "--clips", 0, "--json", "-", *WORDS]
    done = run_cli("bench", *copies, *words, cwd=tmp_path)
    first, second = parse_records(done.stdout, "stdout")
    assert first.memory_mb is not None and second.memory_mb is not None and first.memory_mb < second.memory_mb + 20


def test_a_stream_artefact_is_measured_as_what_it_is(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_counter(tmp_path / "onnx-fp32-stream", "onnx", batch=2)
    rows = bench([folder], device="cpu", scenarios=["single-stream,multi-stream,offline"], include="preprocess", **QUICK)
    assert [(r.status, r.clips_per_query) for r in rows] == [("ok", 1), ("unsupported", 1), ("ok", 2)]
    assert rows[1].reason == "this stream artefact takes 2 frames at once, one per stream, got 8"
    with open_backend(Artifact.open(folder), device="cpu") as backend:
        inputs, seen = make_inputs(backend.artifact.manifest.preprocess), []
        frame = Preprocess.frame
        monkeypatch.setattr(Preprocess, "frame", lambda self, image, *view: seen.append(image.shape) or frame(self, image, *view))
        query, _ = make_query(backend, SCENARIOS["offline"], ("preprocess",), inputs)
        seen.clear()
        query(0)
        assert seen == [(240, 320, 3)] * 2  # what the row says is timed is done
    with pytest.raises(UsageError, match="--include decode"):
        bench([folder], device="cpu", data=videos, clips=0, include="decode", **QUICK)


@given(st.floats(-1e6, 1e6), st.just(0.0) | st.floats(1e-3, 1e6))  # milliseconds, per cent, watts
def test_ticks_cover_the_values(low: float, width: float) -> None:
    ticks = nice_ticks(low, low + width)
    assert 2 <= len(ticks) <= 14
    slack = 1e-6 * (abs(low) + width) + 1e-9
    assert ticks[0] <= low + slack and ticks[-1] >= low + width - slack
    assert len(set(ticks)) == len(ticks)
    logs = log_ticks(abs(low) + 1e-3, abs(low) + 1e-3 + width)
    assert logs[0] <= (abs(low) + 1e-3) * 1.01 and logs[-1] >= (abs(low) + 1e-3 + width) * 0.99


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=20))
def test_the_pareto_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = pareto(points)
    for x, y in points:
        beaten = any((a <= x and b >= y) and (a, b) != (x, y) for a, b in points)
        assert ((x, y) in front) == (not beaten)


_DOT = st.tuples(st.floats(0.38, 0.42), st.floats(80, 82), st.integers(4, 26))


@given(st.lists(_DOT, min_size=1, max_size=10))
def test_labels_of_near_points_cover_neither_each_other_nor_a_point(near: list[tuple[float, float, int]]) -> None:
    points = [Point(x, y, "x" * length, 1) for x, y, length in near] + [Point(2.0, 60.0, "far", 2)]
    tree = ElementTree.fromstring(scatter(points, "ms", "%", "t"))
    names = [e for e in tree.iter("text") if "halo" in e.get("class", "")]
    assert len(names) == len(points)
    boxes = []
    for name in names:
        width, x, y = CHARACTER * len(name.text or ""), float(name.get("x", "")), float(name.get("y", "")) - 4
        boxes.append((x if name.get("text-anchor") == "start" else x - width, y, width))
        assert boxes[-1][0] >= 0 and boxes[-1][0] + width <= WIDTH and 8 <= y <= HEIGHT
    for i, (x, y, width) in enumerate(boxes):
        for left, middle, other in boxes[:i]:
            assert abs(y - middle) >= LINE - 0.2 or x >= left + other or left >= x + width
        for dot in tree.iter("circle"):
            a, b = float(dot.get("cx", "")), float(dot.get("cy", ""))
            assert not (x + 0.2 < a < x + width - 0.2 and abs(b - y) < LINE / 2)


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_the_table_cuts_no_number_on_a_narrow_terminal(records: tuple[Path, list[Record]], width: int) -> None:
    rows = [r.model_copy(deep=True, update={"notes": ["stopped after 60 s"]}) for r in records[1]]
    lost = {"status": "unsupported", "reason": "TensorRT is not usable here", "latency_ms": None, "throughput": None}
    rows += [r.model_copy(update={**lost, "artifact": "tiny-tensorrt/tensorrt-fp16"}) for r in rows[:2]]
    out, below = table(rows, width)
    console = Console(width=width, file=io.StringIO(), no_color=True)
    console.print(out)
    lines = console.file.getvalue().splitlines()
    for record in records[1]:
        assert record.latency_ms is not None and record.throughput is not None
        line = next(x for x in lines if record.artifact.rpartition("/")[2] in x and record.scenario in x)
        assert {number(record.latency_ms.p50), number(record.throughput)} <= set(line.split())
    whole = " ".join(" ".join([*lines, *below]).split())
    assert "stopped after 60 s" in whole and "tensorrt-fp16" in whole and "unsupported: TensorRT" in whole


def test_a_device_that_disappears_is_a_row(onnx_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dtkd_edge.deploy.backends.onnxruntime import OnnxRuntimeBackend

    infer, calls = OnnxRuntimeBackend._infer, iter(range(10**9))

    def lost(self: OnnxRuntimeBackend, inputs: dict[str, Any]) -> dict[str, Any]:
        if next(calls) > 30:
            raise MissingDevice("the GPU has fallen off the bus")
        return infer(self, inputs)

    monkeypatch.setattr(OnnxRuntimeBackend, "_infer", lost)
    with pytest.raises(MissingDevice, match="rows lost: while it ran: the GPU has fallen off the bus"):
        bench([onnx_artifact], device="cpu", clips=0, **QUICK)
