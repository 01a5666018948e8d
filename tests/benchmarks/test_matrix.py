"""Benches of many artefacts, devices and hosts: from a YAML file, resumed, with some of them broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_cases import edit_manifest

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks.command import bench
from dtkd_edge.benchmarks.history import merge
from dtkd_edge.benchmarks.jobs import make_jobs
from dtkd_edge.benchmarks.matrix import Spec, load_matrix
from dtkd_edge.benchmarks.record import Record, read_records, write_records
from dtkd_edge.errors import ArtifactError, DataError, InputError, MissingDevice, UsageError
from dtkd_edge.files import sha256

QUICK: dict[str, Any] = {"min_seconds": 0.05, "min_queries": 20, "warmup": 0.1}


@pytest.fixture
def matrix(run_folder: Path, tmp_path: Path) -> Path:
    """A file of two benches: the run's artefacts here on two devices, and one with eight clips at once."""
    path = tmp_path / "night.yaml"
    path.write_text(
        f"artifacts: {run_folder}/export/*\nscenarios: single-stream,offline\nclips: 0\n"
        "min_seconds: 0.05\nmin_queries: 20\nwarmup: 0.1\n"
        f"benches:\n  - devices: [cpu, jetson]\n  - {{artifacts: [{run_folder}/export/onnx-fp32], scenarios: multi-stream}}\n"
    )
    return path


def made(rows: list[Record]) -> list[tuple[str, str, str]]:
    return [(r.target, r.scenario, r.status) for r in rows]


def test_a_file_of_benches_is_measured_once(matrix: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_folder / "export" / ".onnx-int8.killed").mkdir()  # no shell's * would name it
    rows = bench([matrix])
    assert sorted(made(rows)) == sorted(
        [(t, s, state) for t in ("onnx", "openvino") for s in ("single-stream", "offline") for state in ("ok", "unsupported")]
        + [("onnx", "multi-stream", "ok")]
    )
    assert [r.reason for r in rows if r.status == "unsupported"] == ["--device jetson: this machine is no Jetson"] * 4
    output = matrix.with_suffix(".jsonl")
    assert read_records(output) == rows and "<h1>" in matrix.with_suffix(".html").read_text()
    assert {r.scenario for r in read_records(run_folder / "bench.jsonl")} == {"single-stream", "offline", "multi-stream"}
    out = capsys.readouterr().out
    assert out.count("unsupported: --device") == 2  # a line per artefact, whatever the number of scenarios
    assert "single-stream, offline" in out

    write_records(output, [r for r in rows if (r.target, r.scenario) != ("openvino", "offline")])  # as a kill leaves it
    again = bench([matrix])
    assert sorted(made(again)) == sorted(made(rows))
    before = {r.created + r.scenario + r.target: r for r in rows if r.status == "ok"}
    fresh = [r for r in again if r.status == "ok" and before.get(r.created + r.scenario + r.target) != r]
    assert [(r.target, r.scenario) for r in fresh] == [("openvino", "offline")]
    err = capsys.readouterr().err
    assert "offline: tiny-openvino" in err and "single-stream: " not in err and "multi-stream: " not in err
    assert len(list((run_folder / "bench").iterdir())) == 2


def test_what_moves_a_number_is_measured_again(run_folder: Path, tmp_path: Path) -> None:
    def rows(**options: Any) -> str:
        words: dict[str, Any] = {"device": "cpu", "scenarios": ["offline"], "clips": 0, "resume": True, **QUICK, **options}
        (row,) = bench([run_folder / "export" / "onnx-fp32"], json=str(tmp_path / "r.jsonl"), **words)
        assert row.latency_ms is not None and row.identity is not None
        return json.dumps(row.latency_ms.quantiles)

    first = rows()
    assert rows() == first and rows(host="here") == first
    assert rows(resume=None) != first  # a bench by options measures anew, unless told otherwise
    first = rows()
    assert rows(min_queries=21) != first and rows(threads=1) != first and rows(include="preprocess") != first
    edit_manifest(run_folder / "export" / "onnx-fp32", name="other-onnx")
    assert rows() != first
    kept = read_records(tmp_path / "r.jsonl")
    old = [r.model_copy(update={"tools": {**r.tools, "onnxruntime": "1.0"}}) for r in kept]
    write_records(tmp_path / "r.jsonl", old)
    assert rows() not in [json.dumps(r.latency_ms.quantiles) for r in old if r.latency_ms]
    lines = [r.to_json() for r in read_records(tmp_path / "r.jsonl")]
    for line in lines:
        assert line["asked"].pop("hint") == "throughput"  # a row from before runtimes were set up by the scenario
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert rows() not in [json.dumps(line["latency_ms"]["quantiles"]) for line in lines]


@pytest.mark.slow
def test_a_kill_loses_no_row_that_is_whole(matrix: Path) -> None:
    command = [sys.executable, "-m", "dtkd_edge", "bench", matrix]
    output = matrix.with_suffix(".jsonl")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not output.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    there = {r.identity: r for r in read_records(output)}
    assert there
    rows = {r.identity: r for r in bench([matrix]) if r.status == "ok"}
    assert len(rows) == 5 and all(rows[key] == row for key, row in there.items() if key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("artifacts: [a]\nthread: 2\n", "line 2: thread: no such key; known: artifacts, devices"),
        ("benches:\n  - clips: 0\n  - devices: cpu\n    clips: -1\n", "line 4: benches.1.clips: Input should be greater"),
        ("clips: many\nbenches:\n  - devices: cpu\n", "line 1: clips: Input should be a valid integer"),
        ("benches:\n  - devices: [cpu, tpu]\n", "line 2: benches.0.devices: device tpu: not a device"),
        ("scenarios: server\n", "line 1: scenarios: scenario server: no scenario of that name; choose from: single-stream"),
        ("min_seconds: 9\nmax_seconds: 1\n", "max_seconds 1 is less than min_seconds 9"),
        ("benches: 3\n", "line 1: benches: expected a list"),
        ("output: [a]\n", "line 1: output: expected the name"),
        ("- a\n", "expected keys and values"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_mistake_in_the_file_is_named_by_line_and_key(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_matrix(path)
    assert str(path) in caught.value.message and "\n" not in caught.value.message


def test_the_example_in_the_docs_is_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    (tmp_path / "night.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    specs, output = load_matrix(tmp_path / "night.yaml")
    assert output == tmp_path / "night.jsonl" and len(specs) == 2
    assert specs[1].devices == ["jetson"] and specs[1].hosts == ["user@orin", "user@nano"]
    assert specs[0].scenarios == specs[1].scenarios == ["single-stream", "offline"]
    for key in Spec.model_fields:
        assert key in text.partition("The keys are")[2]


@pytest.mark.parametrize("option", ["json", "report", "md"])
def test_what_cannot_be_written_is_said_before_anything_is_measured(
    option: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out", tmp_path):
        with pytest.raises(InputError, match=re.escape(str(path))):
            bench([run_folder], device="cpu", **{option: str(path) if option == "json" else path}, **QUICK)
    assert not capsys.readouterr().err and not (run_folder / "bench.jsonl").exists()


def test_a_file_stands_alone(matrix: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--threads: .*night.yaml says what is measured"):
        bench([matrix], threads=1)
    with pytest.raises(UsageError, match="--device: "):
        bench([matrix], device="cpu")
    with pytest.raises(UsageError, match="stands alone"):
        bench([matrix, tmp_path])
    with pytest.raises(InputError, match="not readable"):
        bench([tmp_path / "none.yaml"])
    with pytest.raises(InputError, match=r"none\*: nothing matches"):
        make_jobs(Spec(artifacts=["none*"]))


def test_a_broken_artefact_does_not_stop_the_others(run_folder: Path, tmp_path: Path) -> None:
    """Changed since export; a graph that no runtime opens; a manifest that is cut off; and one that is well."""
    export = run_folder / "export"
    for name in ("changed", "garbage", "cut"):
        shutil.copytree(export / "onnx-fp32", export / name)
    (export / "changed" / "model.onnx").write_bytes(b"other")
    (export / "garbage" / "model.onnx").write_bytes(os.urandom(1000))
    artifact = Artifact.open(export / "garbage", check_files=False)
    files = {"model.onnx": sha256(export / "garbage" / "model.onnx")}
    artifact.rewrite_manifest(artifact.manifest.model_copy(update={"files": files}))
    (export / "cut" / "manifest.json").write_text('{"schema": ')
    with pytest.raises(InputError, match="3 of 5 rows failed"):
        bench([run_folder], device="cpu", scenarios=["single-stream"], clips=0, json=str(tmp_path / "r.jsonl"), **QUICK)
    rows = {Path(r.path).name: r for r in read_records(tmp_path / "r.jsonl")}
    assert {name for name, r in rows.items() if r.status == "ok"} == {"onnx-fp32", "openvino-fp32"}
    assert "changed since it was exported" in str(rows["changed"].reason)
    assert "does not open it" in str(rows["garbage"].reason)
    assert "not readable" in str(rows["cut"].reason)
    with pytest.raises(ArtifactError, match="changed since"):  # nothing to measure at all: no table
        bench([export / "changed"], **QUICK)
    with pytest.raises(ArtifactError, match="no artefact here"):  # mistyped: said before anything is measured
        bench([export / "onnx-fp32", export / "onxx-fp32"], **QUICK)


def test_one_that_fails_while_it_runs_does_not_stop_the_others(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dtkd_edge.deploy.backends.onnxruntime import OnnxRuntimeBackend

    infer, calls = OnnxRuntimeBackend._infer, iter(range(10**9))

    def crash(self: OnnxRuntimeBackend, inputs: dict[str, Any]) -> dict[str, Any]:
        if next(calls) > 30:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : out of bounds\nmore of it")
        return infer(self, inputs)

    monkeypatch.setattr(OnnxRuntimeBackend, "_infer", crash)
    with pytest.raises(InputError, match="1 of 2 rows failed: while it ran: the runtime failed: RuntimeError"):
        bench([run_folder], device="cpu", scenarios=["single-stream"], clips=0, json=str(tmp_path / "r.jsonl"), **QUICK)
    assert sorted(made(read_records(tmp_path / "r.jsonl"))) == [
        ("onnx", "single-stream", "failed"), ("openvino", "single-stream", "ok"),
    ]  # fmt: skip


def test_labels_that_the_data_does_not_have(run_folder: Path, videos: Path, tmp_path: Path) -> None:
    stranger = shutil.copytree(run_folder / "export" / "onnx-fp32", tmp_path / "stranger")
    labels = json.loads((stranger / "manifest.json").read_text())["labels"]
    edit_manifest(stranger, labels={head: [f"x{i}" for i in range(len(names))] for head, names in labels.items()})
    with pytest.raises(DataError, match="no label in common with the data"):
        bench([stranger], device="cpu", data=videos, **QUICK)
    with pytest.raises(InputError, match=r"1 of 2 rows failed: .*no label in common"):
        bench(
            [stranger, run_folder / "export" / "openvino-fp32"], device="cpu", data=videos, scenarios=["offline"],
            json=str(tmp_path / "r.jsonl"), **QUICK,
        )  # fmt: skip
    rows = read_records(tmp_path / "r.jsonl")
    assert sorted(made(rows)) == [("onnx", "offline", "failed"), ("openvino", "offline", "ok")]
    assert next(r for r in rows if r.status == "ok").accuracy is not None


def test_benches_of_a_run_add_up(run_folder: Path) -> None:
    words: dict[str, Any] = {"device": "cpu", "clips": 0, **QUICK}
    onnx, openvino = (run_folder / "export" / name for name in ("onnx-fp32", "openvino-fp32"))
    bench([onnx], scenarios=["single-stream"], **words)
    bench([openvino], scenarios=["single-stream"], **words)
    bench([onnx], scenarios=["offline"], **words)
    (newest,) = bench([onnx], scenarios=["single-stream"], **words)
    kept = read_records(run_folder / "bench.jsonl")
    assert sorted(made(kept)) == [
        ("onnx", "offline", "ok"), ("onnx", "single-stream", "ok"), ("openvino", "single-stream", "ok"),
    ]  # fmt: skip
    assert newest in kept
    assert sum(len(read_records(file)) for file in (run_folder / "bench").glob("*.jsonl")) == 4
    assert "openvino-fp32" in (run_folder / "bench.html").read_text(encoding="utf-8")
    edit_manifest(onnx, name="exported-again")
    bench([onnx], scenarios=["offline"], **words)
    assert sorted(made(read_records(run_folder / "bench.jsonl"))) == [
        ("onnx", "offline", "ok"), ("openvino", "single-stream", "ok"),
    ]  # fmt: skip


def test_a_row_without_a_result_goes_when_it_is_tried_again(run_folder: Path) -> None:
    good = bench([run_folder], device="cpu", scenarios=["offline"], clips=0, **QUICK)
    bad = good[0].model_copy(update={"status": "failed", "reason": "x", "backend": None})
    assert merge([bad], [good[0]]) == [good[0]]
    assert merge([good[0]], [bad]) == [good[0], bad]
    assert merge([bad], [good[1]]) == [bad, good[1]]


def test_rows_that_were_asked_for_differently_stand_side_by_side(run_folder: Path) -> None:
    (row, *_) = bench([run_folder], device="cpu", scenarios=["live"], clips=0, **QUICK)
    assert row.asked is not None
    faster, other = (
        row.model_copy(update={"asked": row.asked.model_copy(update=u)}) for u in ({"camera_fps": 60.0}, {"data": "x"})
    )
    longer = row.model_copy(update={"asked": row.asked.model_copy(update={"min_seconds": 9.0})})
    assert merge([row], [faster, other]) == [row, faster, other] and merge([row], [longer]) == [longer]


def test_rows_of_another_machine_are_not_taken_over(run_folder: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {"device": "cpu", "scenarios": ["offline"], "clips": 0, "json": str(tmp_path / "r.jsonl"), **QUICK}
    (first,) = bench([run_folder / "export" / "onnx-fp32"], **words)
    write_records(tmp_path / "r.jsonl", [first.model_copy(update={"tools": {**first.tools, "machine": "a faster one"}})])
    (second,) = bench([run_folder / "export" / "onnx-fp32"], resume=True, **words)
    assert second.created >= first.created and second.tools == first.tools and second.latency_ms != first.latency_ms


def test_a_bench_that_gives_another_median_than_the_last_is_called_noisy(run_folder: Path) -> None:
    words: dict[str, Any] = {"device": "cpu", "scenarios": ["offline"], "clips": 0, "threads": 1, **QUICK}
    artifact = run_folder / "export" / "onnx-fp32"
    (first,) = bench([artifact], **words)
    assert first.drift is None and first.latency_ms is not None
    half = first.latency_ms.model_copy(update={"p50": first.latency_ms.p50 / 2})
    write_records(run_folder / "bench.jsonl", [first.model_copy(update={"latency_ms": half})])
    (second,) = bench([artifact], **words)
    assert second.latency_ms is not None and second.is_noisy
    assert second.drift == pytest.approx(second.latency_ms.p50 / half.p50 - 1, abs=1e-3)
    assert "against the last bench" in (run_folder / "bench.html").read_text(encoding="utf-8")
    (other,) = bench([artifact], **{**words, "include": "preprocess"})  # something else is timed
    assert other.drift is None


def test_a_clock_that_is_set_while_it_runs_changes_nothing(onnx_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = iter(range(0, -(10**9), -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(hours)))
    (row,) = bench([onnx_artifact], device="cpu", scenarios=["live"], clips=0, **QUICK)
    assert row.latency_ms is not None and row.live is not None
    assert 0 < row.latency_ms.min <= row.latency_ms.max < 60_000 and row.seconds > 0
    assert all(0 <= sample["t"] < 60 for sample in row.telemetry.timeline)
    assert np.isfinite(row.throughput or np.nan)


def test_hosts_that_do_not_answer_are_rows(onnx_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("ssh"):
        pytest.skip("OpenSSH's client is not installed")
    from dtkd_edge.benchmarks.ssh import CONFIG_VARIABLE, Ssh

    (tmp_path / "ssh_config").write_text("Host far\n  HostName 127.0.0.1\n  Port 1\n")
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "ssh_config"))
    monkeypatch.setattr(Ssh.__init__, "__kwdefaults__", {"tries": 1, "pause": 0.01})
    with pytest.raises(MissingDevice, match=r"2 of 4 rows lost: far: .*refused"):
        bench([onnx_artifact], host="far,here", device="cpu", clips=0, json=str(tmp_path / "r.jsonl"), **QUICK)
    rows = read_records(tmp_path / "r.jsonl")
    assert [(r.device.host, r.status) for r in rows] == [("far", "lost")] * 2 + [(None, "ok")] * 2
