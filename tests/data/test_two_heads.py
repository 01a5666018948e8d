"""A student of two heads through the whole chain: EPIC-KITCHENS' tree, a step of training, artefacts, bench, predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import official_trees as trees
import pytest

import dtkd_edge
from dtkd_edge.artifact import Artifact
from dtkd_edge.benchmarks.command import bench
from dtkd_edge.export import verify
from dtkd_edge.export.command import export
from dtkd_edge.train.command import train
from dtkd_edge.train.eval_command import evaluate

TARGETS = ("onnx", "openvino")
STUDENT = ("student.model=tsm_tiny", "student.frames=4", "student.size=24", "data.stride=4")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_verb_and_noun_from_training_to_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setenv("DTKD_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify, "SECONDS", 0.05)  # how fast the artefacts are is not looked at
    root = trees.epic100(tmp_path / "set", clips=4)
    sets = [f"data.root={root}", *STUDENT, "distill.method=ce", "train.epochs=1", "train.batch_size=8", "threads=1"]
    run = train("epic100", overrides=sets, out=tmp_path / "run")
    names = json.loads((run / "student.json").read_text())["labels"]
    folders = [export(run, target=target) for target in TARGETS]
    manifests = [Artifact.open(folder).manifest for folder in folders]
    for manifest in manifests:
        assert manifest.labels == names and [out.head for out in manifest.outputs] == ["verb", "noun"]
        assert [out.classes for out in manifest.outputs] == [4, 5]

    records = bench(
        folders, device="cpu", scenarios=["offline"], min_seconds=0.05, max_seconds=0.2, min_queries=5, warmup=0.05, threads=1
    )
    assert [record.status for record in records] == ["ok", "ok"]
    for folder, record in zip(folders, records, strict=True):
        scored = evaluate(folder, overrides=[])
        accuracy = record.accuracy
        assert accuracy is not None and accuracy.n == scored["n"] == 8 and accuracy.agreement == 1
        assert list(accuracy.heads) == ["verb", "noun", "action"] and accuracy.top1 == accuracy.heads["verb"].top1
        for head, found in accuracy.heads.items():
            assert found.top1 == pytest.approx(scored["heads"][head]["top1"])
            if "top5" in scored["heads"][head]:
                assert found.top5 == pytest.approx(scored["heads"][head]["top5"])
        assert "top5" in scored["heads"]["action"] and accuracy.heads["action"].top5 < 1  # 20 pairs

    video = next(root.rglob("P18_01.MP4"))
    predictions = []
    for folder in folders:
        with dtkd_edge.load(folder, device="cpu", threads=1) as classifier:
            predictions.append(classifier.predict(video).to_json(top=5)["heads"])
    for head in ("verb", "noun"):
        onnx, openvino = ({row["label"]: row["score"] for row in found[head]} for found in predictions)
        assert set(onnx) == set(names[head]) and sum(onnx.values()) == pytest.approx(1, abs=1e-4)
        np.testing.assert_allclose([openvino[name] for name in onnx], list(onnx.values()), atol=1e-3)
