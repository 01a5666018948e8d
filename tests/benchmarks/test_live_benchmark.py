"""`python -m dtkd_edge.benchmarks.live` as typed, but short: what it counts, not how fast this machine is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_line_is_there(onnx_artifact: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dtkd_edge.benchmarks.live", str(onnx_artifact), "--device", "cpu"]
    command += ["--seconds", "2", "--blocks", "1", "--minutes", "0.1", "--json", str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    age, viewers, soak = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["what"] for line in (age, viewers, soak)] == ["age", "viewers", "soak"]
    assert 0 < age["labels"] <= age["frames"] <= 65 and 0 < age["model_ms"]["p50"] <= age["age_ms"]["p50"] <= age["age_ms"]["p90"]
    assert age["limit_ms"] == pytest.approx(1000 / 30 + 1.5 * age["model_ms"]["p50"], abs=0.05)
    assert [len(rates) for rates in viewers["labels_per_second"].values()] == [1, 1] and viewers["slow"] == 0
    one, twenty = (rates[0] for rates in viewers["labels_per_second"].values())
    assert viewers["ratio"] == pytest.approx(twenty / one, abs=0.02) and viewers["source_fps"] > 30  # faster than that tiny model
    assert min(viewers["pictures_per_second"].values()) > 1  # every page got some
    assert all(0 < cores["demo"] < 64 and 0 < cores["pages"] < 8 for cores in viewers["cores_taken"].values())
    assert len(soak["age_p90_ms"]) == 5 and soak["part_s"] == 1.2 and bool(soak["broken"]) == (not soak["good"])
    assert min(soak["age_p90_ms"]) > 0 and soak["labels"] > 0
    assert min(soak["memory_mb"]) > 20 and soak["threads"][0] > 4
    assert soak["growth_mb"] == pytest.approx(soak["memory_mb"][1] - soak["memory_mb"][0], abs=0.2)
    good = age["good"] and viewers["good"] and soak["good"]
    assert done.returncode == (0 if good else 1) and ("beyond the limit" in done.stderr) == (not good)
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 5 and all(row.count("|") == 4 for row in rows)
    assert re.search(r"age p90 [\d.]+ ms in the first 1\.2 s, [\d.]+ ms in the last .* threads \d+ → \d+", rows[-1])
    assert [("missed" in row) for row in rows[2:]] == [not line["good"] for line in (age, viewers, soak)]


def test_an_unknown_measure_is_said(onnx_artifact: Path) -> None:
    command = [sys.executable, "-m", "dtkd_edge.benchmarks.live", str(onnx_artifact), "--only", "speed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "--only speed" in done.stderr and "age, viewers, soak" in done.stderr
