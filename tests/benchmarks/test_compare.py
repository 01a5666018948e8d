"""Comparing two files of records: what counts as a change, and the exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dtkd_edge.benchmarks.compare import compare, compare_files
from dtkd_edge.benchmarks.history import with_drift
from dtkd_edge.benchmarks.record import Accuracy, Device, HeadAccuracy, Latency, Record, write_records
from dtkd_edge.benchmarks.report import legend
from dtkd_edge.benchmarks.scenarios import SCENARIOS
from dtkd_edge.benchmarks.statistics import percentile, percentile_interval, wilson
from dtkd_edge.errors import InputError, VerificationError


def row(
    ms: float,
    *,
    right: int = 300,
    n: int = 400,
    seed: int = 0,
    scenario: str = "single-stream",
    tail: float = 1,
    queries: int = 240,
) -> Record:
    """A record as bench writes it, with a median of about `ms` and blocks that scatter by 2 %; every sixth query takes `tail`
    times as long."""
    rng = np.random.default_rng(seed)
    times = ms * rng.lognormal(0, 0.02, queries)
    times[::6] *= tail
    percent = SCENARIOS[scenario].percent or 50
    latency = Latency(
        n=queries, mean=float(times.mean()), p50=percentile(times, 50), p90=percentile(times, 90), p99=percentile(times, 99),
        max=float(times.max()), min=float(times.min()), interval=percentile_interval(times, percent),
        blocks=[float(np.median(b)) for b in times.reshape(12, -1)],
    )  # fmt: skip
    top1 = Accuracy(top1=right / n, top5=1.0, n=n, top1_interval=wilson(right, n), top5_interval=wilson(n, n), data="d")
    return Record(
        created="now", artifact="quick/onnx-fp32", target="onnx", precision="fp32", backend="onnxruntime",
        device=Device(kind="cpu", name="CPU"), scenario=scenario, timed_region="inference", latency_ms=latency, accuracy=top1,
    )  # fmt: skip


def verdicts(old: Record, new: Record) -> dict[str, str]:
    return {c.what: c.verdict for c in compare([old], [new])}


def test_verdicts() -> None:
    assert verdicts(row(10), row(10, seed=2)) == {"p50 ms/clip": "same", "p90 ms/clip": "same", "top-1 %": "same"}
    slow = {"p50 ms/clip": "REGRESSION", "p90 ms/clip": "REGRESSION", "top-1 %": "same"}
    assert verdicts(row(10), row(12, seed=1)) == slow
    assert verdicts(row(10), row(10.3, seed=1))["p50 ms/clip"] in ("worse", "same")  # within the limit
    assert verdicts(row(10), row(8, seed=1))["p50 ms/clip"] == "better"
    assert verdicts(row(10), row(10, right=250))["top-1 %"] == "REGRESSION"
    assert verdicts(row(10), row(10, right=294))["top-1 %"] == "same"  # 1.5 points of 400 clips are noise
    assert verdicts(row(10), row(10, right=350))["top-1 %"] == "better"


def test_a_slower_tail_is_a_regression_though_the_median_stays() -> None:
    got = verdicts(row(10), row(10, seed=1, tail=1.5))
    assert got["p50 ms/clip"] in ("same", "worse") and got["p90 ms/clip"] == "REGRESSION"
    assert verdicts(row(10, tail=1.5), row(10, seed=1))["p90 ms/clip"] == "better"
    many = {"scenario": "multi-stream", "queries": 600}
    got = verdicts(row(10, **many), row(10, seed=1, tail=1.5, **many))
    assert got["p99 ms/clip"] == "REGRESSION" and "p90 ms/clip" not in got
    assert "p90 ms/clip" not in verdicts(row(10, scenario="offline"), row(10, scenario="offline"))
    few = [c for c in compare([row(10, scenario="multi-stream")], [row(20, scenario="multi-stream")]) if c.what == "p99 ms/clip"]
    assert few[0].verdict == "too short" and few[0].high is None and few[0].change == pytest.approx(1)  # p99 needs 368 queries


def test_queries_of_other_sizes_are_compared_by_the_clip() -> None:
    """As many clips a query as the runtime has requests: four times as many in four times the time is no regression."""
    small, large = (row(ms, scenario="offline").model_copy(update={"clips_per_query": n}) for ms, n in ((80, 8), (320, 32)))
    assert verdicts(small, large)["p50 ms/clip"] == "same"
    (latency, _) = compare([small], [large])
    assert latency.old == pytest.approx(10, rel=0.02) and latency.new == pytest.approx(latency.old)
    assert with_drift(large, small).drift == 0
    slow = row(400, scenario="offline").model_copy(update={"clips_per_query": 32})
    assert verdicts(small, slow)["p50 ms/clip"] == "REGRESSION"
    assert with_drift(slow, small).drift == pytest.approx(0.25, abs=0.02)


def test_two_artefacts_of_one_name_are_not_mixed_up() -> None:
    other = row(20).model_copy(update={"artifact": "slow/onnx-fp32"})
    with pytest.raises(InputError, match="quick/onnx-fp32 and slow/onnx-fp32 cannot be told apart"):
        compare([row(10), other], [row(10)])


def test_too_few_blocks_say_nothing() -> None:
    def short(ms: float) -> Record:
        record = row(ms)
        assert record.latency_ms is not None
        return record.model_copy(update={"latency_ms": record.latency_ms.model_copy(update={"blocks": [ms]})})

    assert verdicts(short(10), short(20))["p50 ms/clip"] == "too short"


def test_amounts() -> None:
    latency, tail, accuracy = compare([row(10)], [row(12)])
    assert tail.change == pytest.approx(0.2) and tail.low is not None and tail.high is not None and tail.low < 0.2 < tail.high
    assert latency.change == pytest.approx(0.2, abs=0.03)
    assert latency.low is not None and latency.high is not None and latency.low < 0.2 < latency.high
    assert accuracy.change == 0


def test_rows_that_are_gone_or_new() -> None:
    old, new = row(10), row(10, scenario="offline")
    assert [(c.what, c.verdict) for c in compare([old], [new])] == [("row", "gone"), ("row", "new")]
    off = old.model_copy(update={"status": "unsupported", "reason": "x", "latency_ms": None, "backend": None, "timed_region": ""})
    assert [c.verdict for c in compare([old], [off])] == ["unsupported"]


def test_equal_devices_at_two_hosts_are_two_rows() -> None:
    def at(host: str, ms: float) -> Record:
        record = row(ms)
        return record.model_copy(update={"device": record.device.model_copy(update={"host": host})})

    changes = compare([at("a", 10), at("b", 20)], [at("a", 10), at("b", 10)])
    assert [(c.key[1], c.verdict) for c in changes if c.what == "p50 ms/clip"] == [("CPU at a", "same"), ("CPU at b", "better")]


def test_a_row_that_failed_since_says_so() -> None:
    failed = row(10).model_copy(update={"status": "failed", "reason": "x", "backend": None, "latency_ms": None, "accuracy": None})
    assert verdicts(row(10), failed) == {"row": "failed"}


def test_a_file_with_rows_of_another_version_is_refused(tmp_path: Path) -> None:
    old, mixed = tmp_path / "old.jsonl", tmp_path / "mixed.jsonl"
    write_records(old, [row(10)])
    line = old.read_text()
    mixed.write_text(line + line.replace("dtkd-edge/bench/1", "dtkd-edge/bench/0"))
    with pytest.raises(InputError, match=r"mixed\.jsonl: record 2: schema is 'dtkd-edge/bench/0'"):
        compare_files(old, mixed)


def test_files_and_exit_codes(tmp_path: Path) -> None:
    old, same, slow, other = (tmp_path / f"{n}.jsonl" for n in ("old", "same", "slow", "other"))
    for path, record in ((old, row(10)), (same, row(10, seed=1)), (slow, row(12)), (other, row(10, scenario="offline"))):
        write_records(path, [record])
    assert len(compare_files(old, same)) == 3
    with pytest.raises(VerificationError, match=r"2 regressions: onnx-fp32 single-stream p50 ms/clip, .* p90 ms/clip"):
        compare_files(old, slow)
    assert compare_files(old, slow, latency_limit=0.5)[0].verdict == "worse"
    with pytest.raises(InputError, match="no row in common"):
        compare_files(old, other)
    command = [sys.executable, "-m", "dtkd_edge", "bench", "--compare", str(old), str(slow)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5 and "REGRESSION" in done.stdout and "error: 2 regressions" in done.stderr
    write_records(slow, [row(10, seed=1, tail=1.5)])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5 and "error: 1 regression: onnx-fp32 single-stream p90 ms/clip" in done.stderr


def test_each_head_is_said_below_the_table() -> None:
    one = row(10)
    assert one.accuracy is not None and not any("Each head" in line for line in legend([one]))
    heads = {"verb": HeadAccuracy(top1=0.625, top5=0.9), "noun": HeadAccuracy(top1=0.5, top5=0.75)}
    two = one.model_copy(update={"accuracy": one.accuracy.model_copy(update={"heads": heads})})
    lines = [line for line in legend([two, two]) if line.startswith("Each head")]
    assert lines == ["Each head of quick/onnx-fp32, top-1 / top-5 %: verb 62.5 / 90.0, noun 50.0 / 75.0."]
