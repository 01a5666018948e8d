"""The machine's limit: its rates, and what a query needs at least."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks.command import bench
from dtkd_edge.benchmarks.record import read_records
from dtkd_edge.benchmarks.report import COLUMNS, cells, legend, remarks
from dtkd_edge.benchmarks.roofline import Machine, limit, measure_machine


def test_a_query_is_bound_by_what_takes_longer(onnx_artifact: Path) -> None:
    artifact = Artifact.open(onnx_artifact)
    macs = artifact.manifest.model.macs
    moved = (onnx_artifact / "model.onnx").stat().st_size + 3 * 8 * 40 * 40
    slow_memory = limit(artifact, Machine(gflops=1e6, gbs=1.0, threads=1), 1, median_ms=2 * moved / 1e6)
    assert slow_memory.bound == "memory" and slow_memory.bytes == moved
    assert slow_memory.limit_ms == pytest.approx(moved / 1e6) and slow_memory.share == pytest.approx(0.5)
    slow_arithmetic = limit(artifact, Machine(gflops=1e-6, gbs=1e6, threads=1), 4, median_ms=16 * macs)
    assert slow_arithmetic.bound == "compute" and slow_arithmetic.macs == 4 * macs
    assert slow_arithmetic.limit_ms == pytest.approx(8 * macs) and slow_arithmetic.share == pytest.approx(0.5)


def test_rates_are_those_of_a_computer() -> None:
    machine = measure_machine(1)
    assert 0.5 < machine.gflops < 2000 and 0.2 < machine.gbs < 500 and machine.threads == 1


def test_the_bench_says_how_near_each_row_comes(onnx_artifact: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(onnx_artifact, run / "export" / "onnx-fp32")
    rows = bench([run / "export" / "onnx-fp32"], device="cpu", threads=1, clips=0, min_seconds=0.1, min_queries=20,
                 roofline=True, json=str(tmp_path / "rows.jsonl"))  # fmt: skip
    for row in rows:
        assert row.roofline is not None and row.latency_ms is not None
        assert row.roofline.share == pytest.approx(row.roofline.limit_ms / row.latency_ms.p50)
        assert re.fullmatch(r"\d+ % (compute|memory)", cells(row)[COLUMNS.index("of limit")])
        beyond = row.model_copy(update={"roofline": row.roofline.model_copy(update={"share": 1.4})})
        assert "beyond the limit: the machine was busy when measured" in remarks(beyond)
        int8 = beyond.model_copy(update={"effective_precision": "int8"})
        assert "beyond the limit: its arithmetic is narrower than float32" in remarks(int8)
        assert "--roofline" in row.command
    assert any(line.startswith("Limit: float32 matrix products at ") for line in legend(rows))
    assert read_records(tmp_path / "rows.jsonl") == rows
    without = {**json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])}
    del without["roofline"]  # an older record
    (tmp_path / "old.jsonl").write_text(json.dumps(without) + "\n")
    assert read_records(tmp_path / "old.jsonl")[0].roofline is None
