"""`python -m dtkd_edge.benchmarks.live` as typed, but short: what it counts, not how fast this machine is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from deploy_cases import write_mp4

from dtkd_edge.benchmarks.live import drawn_clip, running, shown
from dtkd_edge.benchmarks.viewers import watched
from dtkd_edge.deploy.classifier import load
from dtkd_edge.errors import NotHereError


@pytest.mark.slow
def test_every_line_is_there(onnx_artifact: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dtkd_edge.benchmarks.live", str(onnx_artifact), "--device", "cpu"]
    command += ["--source", str(write_mp4(tmp_path / "clip.mp4", frames=60, size=(160, 120)))]
    command += ["--seconds", "2", "--settle", "0.5", "--blocks", "1", "--minutes", "0.05", "--json", str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    age, viewers, soak = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["what"] for line in (age, viewers, soak)] == ["age", "viewers", "soak"]
    assert 0 < age["labels"] <= age["frames"] <= 65 and 0 < age["model_ms"]["p50"] <= age["age_ms"]["p50"] <= age["age_ms"]["p90"]
    assert age["limit_ms"] == pytest.approx(1000 / 30 + 1.5 * age["model_ms"]["p50"], abs=0.05)
    assert [len(rates) for rates in viewers["labels_per_second"].values()] == [1, 1] and viewers["slow"] == 0
    one, twenty = (rates[0] for rates in viewers["labels_per_second"].values())
    assert viewers["ratio"] == pytest.approx(twenty / one, abs=0.02) and viewers["source_fps"] > 30
    assert viewers["source_was_the_limit"] == ("the source was the limit" in done.stdout)
    assert min(viewers["pictures_per_second"].values()) > 1  # every page got some
    assert all(0 < cores["demo"] < 64 and 0 < cores["pages"] < 8 for cores in viewers["cores_taken"].values())
    assert len(soak["age_p90_ms"]) == 5 and soak["part_s"] == 0.6 and bool(soak["broken"]) == (not soak["good"])
    assert min(soak["age_p90_ms"]) > 0 and soak["labels"] > 0 and soak["slow"] == 0 and "viewer dropped" not in soak["broken"]
    assert min(soak["memory_mb"]) > 20 and soak["threads"][0] > 4
    assert soak["growth_mb"] == pytest.approx(soak["memory_mb"][1] - soak["memory_mb"][0], abs=0.2)
    good = age["good"] and viewers["good"] and soak["good"]
    assert done.returncode == (0 if good else 1) and ("beyond the limit" in done.stderr) == (not good)
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 5 and all(row.count("|") == 4 for row in rows)
    assert re.search(r"age p90 [\d.]+ ms in the first 0\.6 s, [\d.]+ ms in the last .* threads \d+ → \d+", rows[-1])
    assert [("missed" in row) for row in rows[2:]] == [not line["good"] for line in (age, viewers, soak)]


def test_a_page_that_was_dropped_is_outlived(onnx_artifact: Path, tmp_path: Path) -> None:
    """The server closes one of two pages, then the other; what they got is told all the same, until their process is gone."""
    with (
        load(onnx_artifact, device="cpu", threads=1) as classifier,
        running(classifier, str(drawn_clip(tmp_path / "clip.mp4"))) as session,
        shown(session) as web,
        watched(web, 2) as pages,
    ):

        def sample_until(done: Callable[[list[int]], bool]) -> list[int]:
            end = time.monotonic() + 20
            while not done(got := pages.sample().pictures) and time.monotonic() < end:
                time.sleep(0.05)
            assert done(got), got
            return got

        sample_until(lambda got: min(got) > 0)
        web.viewers.pop()  # its sender then ends, and the page is closed as one that reads too slowly is
        start = sample_until(lambda got: True)
        sample_until(lambda got: max(b - a for a, b in zip(start, got, strict=True)) > 5)  # the other goes on
        web.viewers.pop()
        last = pages.sample().pictures
        assert len(last) == 2 and min(last) > 0
        time.sleep(0.5)
        assert pages.sample().pictures == pages.sample().pictures
        pages._child.kill()
        pages._child.wait()
        with pytest.raises(NotHereError, match="watches the page ended"):
            pages.sample()


def test_an_unknown_measure_is_said(onnx_artifact: Path) -> None:
    command = [sys.executable, "-m", "dtkd_edge.benchmarks.live", str(onnx_artifact), "--only", "speed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "--only speed" in done.stderr and "age, viewers, soak" in done.stderr
