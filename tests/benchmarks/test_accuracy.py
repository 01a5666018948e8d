"""Accuracy clip by clip: what counts as right, interruptions, runtimes that fail, and the torch student beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks.accuracy import Candidate, match_labels, measure_accuracy, pair_answer
from dtkd_edge.benchmarks.answers import UNKNOWN, Answer, Journal, answer
from dtkd_edge.benchmarks.command import bench
from dtkd_edge.benchmarks.plan import Data, find_reference
from dtkd_edge.benchmarks.record import Accuracy, read_records
from dtkd_edge.data.catalogue import Catalogue, open_split
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.deploy.backends.onnxruntime import OnnxRuntimeBackend
from dtkd_edge.errors import DataError, InputError, MissingDevice
from dtkd_edge.recipe import DataConfig
from dtkd_edge.video import read_input

QUICK: dict[str, Any] = {"device": "cpu", "scenarios": ["offline"], "min_seconds": 0.05, "min_queries": 20, "warmup": 0.05}


@pytest.fixture
def split(videos: Path) -> Catalogue:
    return open_split(DataConfig(kind="folder", root=videos, val_share=0.4), "val")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DTKD_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bench"


def test_labels_are_matched_by_name() -> None:
    assert match_labels({"action": ["a", "b", "c"]}, {"action": ["c", "x", "a"]}, "art") == {"action": [2, UNKNOWN, 0]}
    with pytest.raises(DataError, match="no label in common"):
        match_labels({"action": ["a"]}, {"action": ["z"]}, "art")
    with pytest.raises(DataError, match="no label in common"):
        match_labels({"verb": ["a"]}, {"action": ["a"]}, "art")


@pytest.mark.parametrize(
    ("logits", "label", "place"),
    [
        ([0, 3, 1, 2, 0, 0, 0, 0], 1, 0),
        ([0, 3, 1, 2, 0, 0, 0, 0], 2, 2),
        ([0] * 8, 0, 7),  # a constant output is not right
        ([np.nan] * 8, 1, 7),  # nor is one that is no number
        ([np.nan, 1, 0, 0, 0, 0, 0, 0], 0, 7),
        ([1, 0], UNKNOWN, UNKNOWN),
    ],
)
def test_the_place_of_a_label(logits: list[float], label: int, place: int) -> None:
    assert answer(np.array(logits, np.float32), label).place == place


def test_an_action_is_right_where_its_pair_ranks_first() -> None:
    """Pairs rank by the sum of both logits; a clip of a class that the artefact does not know has no place."""
    logits = {"verb": np.array([[3.0, 2.5, 0.0]]), "noun": np.array([[1.0, 0.25, -1.9]])}
    order = sorted(
        itertools.product(range(3), range(3)), key=lambda pair: -(logits["verb"][0, pair[0]] + logits["noun"][0, pair[1]])
    )
    for place, (verb, noun) in enumerate(order):
        assert pair_answer(logits, {"verb": verb, "noun": noun}).place == place
    assert pair_answer(logits, {"verb": UNKNOWN, "noun": 0}).place == UNKNOWN


def fail_after(monkeypatch: pytest.MonkeyPatch, calls: int, error: BaseException) -> Callable[[], int]:
    """Let ONNX Runtime raise from its `calls`-th inference on; returns how many there were."""
    infer, seen = OnnxRuntimeBackend._infer, [0]

    def failing(self: OnnxRuntimeBackend, inputs: dict[str, Any]) -> dict[str, Any]:
        seen[0] += 1
        if seen[0] > calls:
            raise error
        return infer(self, inputs)

    monkeypatch.setattr(OnnxRuntimeBackend, "_infer", failing)
    return lambda: seen[0]


def test_an_interrupted_accuracy_goes_on(
    split: Catalogue, onnx_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    with open_backend(Artifact.open(onnx_artifact), device="cpu", threads=1) as backend:
        (whole,) = measure_accuracy([Candidate(backend)], split, "x")
        assert isinstance(whole, Accuracy) and whole.n + whole.broken == len(split)
        with monkeypatch.context() as patch:
            fail_after(patch, 3, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                measure_accuracy([Candidate(backend, Journal(path))], split, "x")
        with path.open("a") as stream:
            stream.write('[5, [1, 2], {"action": [1')  # a kill in the middle of a line
        kept = len(Journal(path))
        assert kept >= 3
        with monkeypatch.context() as patch:
            asked = fail_after(patch, 10**9, KeyboardInterrupt())
            (rest,) = measure_accuracy([Candidate(backend, Journal(path))], split, "x")
            assert asked() <= len(split) - kept
    assert rest == whole
    assert f"{kept} of {len(split)} clips are answered" in capsys.readouterr().err


def test_an_answer_to_a_file_that_has_changed_is_none(split: Catalogue, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "j.jsonl")
    journal.add(0, split[0].state(), {"action": Answer(1, 0)})
    again = Journal(tmp_path / "new" / "j.jsonl")
    assert again.get(0, split[0].state()) == {"action": Answer(1, 0)}
    assert again.get(0, [1, 2]) is None and again.get(1, split[1].state()) is None
    again.remove()
    assert not list((tmp_path / "new").iterdir())
    Journal(tmp_path / "new" / "j.jsonl", fresh=True).remove()
    (tmp_path / "file").write_text("")
    nowhere = Journal(tmp_path / "file" / "j.jsonl")  # nothing can be written: it is measured all the same
    nowhere.add(0, [], {"action": Answer(0, 0)})
    assert nowhere.get(0, []) == {"action": Answer(0, 0)}


def test_a_bench_takes_up_an_accuracy_and_leaves_nothing(
    run_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        fail_after(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            bench([run_folder], **QUICK)
    assert len(list(cache.iterdir())) == 2  # one for each artefact
    rows = bench([run_folder], **QUICK)
    assert "accuracy: going on with an interrupted one" in capsys.readouterr().err
    assert not list(cache.iterdir()) and rows[0].accuracy == rows[1].accuracy is not None
    with monkeypatch.context() as patch:
        fail_after(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            bench([run_folder], **QUICK)
    bench([run_folder], resume=False, **QUICK)  # --again: from the start
    assert "going on" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [(RuntimeError("CUDA error 719\nmore"), InputError, "failed"), (MissingDevice("off the bus"), MissingDevice, "lost")],
)
def test_a_runtime_that_fails_meanwhile_is_a_row(
    error: Exception, kind: type[Exception], status: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, 3, error)
    with pytest.raises(kind, match=f"1 of 2 rows {status}: "):
        bench([run_folder], json=str(tmp_path / "r.jsonl"), **QUICK)
    rows = {r.target: r for r in read_records(tmp_path / "r.jsonl")}
    assert rows["onnx"].status == status and str(error).splitlines()[0] in str(rows["onnx"].reason)
    assert rows["openvino"].status == "ok" and rows["openvino"].accuracy is not None


def test_the_torch_student_beside_it(
    run_folder: Path, torch_graph: Any, split: Catalogue, capsys: pytest.CaptureFixture[str]
) -> None:
    """predictions.npz as `train` leaves it, except that the student said something else of one clip."""
    import torch

    artifact = Artifact.open(run_folder / "export" / "onnx-fp32")
    names, spec = artifact.manifest.labels["action"], artifact.manifest.preprocess
    clips = {i: read_input(split[i].path, spec)[0] for i in range(len(split)) if split[i].path.name != "broken.mp4"}
    with torch.inference_mode():
        logits = torch_graph(torch.from_numpy(np.stack(list(clips.values())))).numpy()
    logits[0] = -logits[0]
    kept = {
        "action/labels": np.array([names.index(split.classes["action"][split[i].labels["action"]]) for i in clips]),
        "action/classes": np.array(names), "action/logits/student": logits, "action/index": np.array(list(clips)),
    }  # fmt: skip
    np.savez(run_folder / "predictions.npz", **kept)
    rows = bench([run_folder], **QUICK)
    for row in rows:
        assert row.accuracy is not None and row.accuracy.agreement_n == len(clips)
        assert row.accuracy.agreement == pytest.approx(1 - 1 / len(clips))
    assert f"{100 - 100 / len(clips):.1f} % of {len(clips)}" in capsys.readouterr().out

    assert len(find_reference(artifact, Data(split, "x", own=True))["action"]) == len(split)
    assert not find_reference(artifact, Data(split, "x"))  # clips that the user named
    np.savez(run_folder / "predictions.npz", **{**kept, "action/labels": kept["action/labels"][::-1]})
    assert not find_reference(artifact, Data(split, "x", own=True))  # other labels than at the training
    (run_folder / "predictions.npz").write_bytes(b"PK damaged")
    assert not find_reference(artifact, Data(split, "x", own=True))
