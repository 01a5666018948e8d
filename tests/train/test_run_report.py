"""The page of a finished run: its figures against a count of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtkd_edge.train.run_report import Predictions, save_predictions, write_run_report


def made(classes: int, clips: int = 200) -> Predictions:
    rng = np.random.default_rng(classes)
    logits = {name: rng.normal(size=(clips, classes)).astype(np.float32) for name in ("student", "cnn", "vit")}
    logits["vit"][: clips // 2] = logits["student"][: clips // 2]  # agrees there
    omega = rng.dirichlet((1, 1), clips).astype(np.float32)
    return Predictions([f"class <{i}>" for i in range(classes)], rng.integers(0, classes, clips), logits, omega)


METRICS: dict[str, Any] = {
    "student": {"action_top1": 0.75, "n": 200},
    "teachers": {"cnn": {"action_top1": 0.875, "n": 200}, "vit": {"action_top1": 0.5, "n": 200}},
    "method": "dtkd",
    "clips": {"train": 300, "student": 100, "val": 200},
}


def page(tmp_path: Path, found: Predictions, log: str = "") -> str:
    (tmp_path / "log.jsonl").write_text(log)
    save_predictions(tmp_path, {"action": found})
    return write_run_report(tmp_path, "a run", METRICS, {"action": found}).read_text()


@pytest.mark.parametrize("teacher", ["cnn", "vit"])
def test_matrices_and_agreement_are_counted_right(tmp_path: Path, teacher: str) -> None:
    found = made(5)
    text = page(tmp_path, found)
    assert "<script" not in text and "http" not in text and "class <" not in text
    pairs = re.findall(r"<title>class &lt;(\d)&gt; → class &lt;(\d)&gt;: (\d+) of \d+</title>", text)
    assert len(pairs) == 3 * 25  # label, CNN and ViT against the student
    answers = {name: logits.argmax(1) for name, logits in found.logits.items()}
    start = {"cnn": 25, "vit": 50}[teacher]
    for row, column, count in pairs[start : start + 25]:
        assert int(count) == sum(
            t == int(row) and s == int(column) for t, s in zip(answers[teacher], answers["student"], strict=True)
        )
    name = {"cnn": "CNN", "vit": "ViT"}[teacher]
    line = re.search(rf"<td>{name} teacher</td>(.*?)</tr>", text)
    assert line is not None
    shares = [float(v) for v in re.findall(r"([\d.]+) %", line.group(1))]
    right, theirs = answers["student"] == found.labels, answers[teacher] == found.labels
    assert shares[0] == pytest.approx(100 * np.mean(answers["student"] == answers[teacher]), abs=0.06)
    assert shares[2] == pytest.approx(100 * np.mean(right & ~theirs), abs=0.06)
    assert sum(shares[1:5]) == pytest.approx(100, abs=0.21)


def test_many_classes_become_a_list(tmp_path: Path) -> None:
    text = page(tmp_path, made(60))
    assert "most frequent differences" in text and "→" not in text and "ω by class" not in text
    counts = [int(v) for v in re.findall(r'<td class="r">(\d+)</td></tr>', text)]
    assert counts and max(counts[:20]) == counts[0]


def test_what_is_kept_can_be_read_again(tmp_path: Path) -> None:
    found = made(5)
    page(tmp_path, found)
    kept = np.load(tmp_path / "predictions.npz")
    assert kept["action/classes"].tolist() == list(found.classes)
    assert np.array_equal(kept["action/logits/vit"], found.logits["vit"])
    assert np.array_equal(kept["action/labels"], found.labels)
