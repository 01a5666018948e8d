"""The page of a finished run: its figures against a count of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtkd_edge.recipe import DistillConfig
from dtkd_edge.train.phases import _omega as omega_of
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
    assert "most frequent differences" in text and "→" not in text
    counts = [int(v) for v in re.findall(r'<td class="r">(\d+)</td></tr>', text)]
    assert counts and max(counts[:20]) == counts[0]


def test_of_many_classes_those_of_the_largest_and_smallest_omega_are_shown(tmp_path: Path) -> None:
    found = made(60, clips=600)
    assert found.omega is not None
    text = page(tmp_path, found)
    svg = re.findall(r'<svg[^>]*aria-label="ω by class".*?</svg>', text)
    assert len(svg) == 1
    shown = [int(name) for name in re.findall(r">class &lt;(\d+)&gt;</text>", svg[0])]
    means = [found.omega[found.labels == k, 1].mean() for k in range(60)]
    order = sorted(range(60), key=lambda k: -means[k])
    assert shown == order[:10] + order[-10:]
    assert len(re.findall(r'aria-label="ω by class"', page(tmp_path, made(5)))) == 1


@pytest.mark.parametrize("method", ["dtkd", "ebkd", "ca-mkd", "kd-mean"])
def test_omega_is_the_methods_own(method: str) -> None:
    rng = np.random.default_rng(0)
    logits = {name: 3 * rng.normal(size=(50, 4)).astype(np.float32) for name in ("student", "cnn", "vit")}
    labels = rng.integers(0, 4, 50)
    omega = omega_of(DistillConfig(method=method), logits, labels)
    if method == "kd-mean":
        assert omega is None
        return
    p = {name: np.exp(x) / np.exp(x).sum(1, keepdims=True) for name, x in logits.items()}
    entropy = {name: -(q * np.log(q)).sum(1) for name, q in p.items()}
    own = {
        "ebkd": entropy["cnn"] / (entropy["cnn"] + entropy["vit"]),
        "ca-mkd": p["vit"][np.arange(50), labels] / (p["cnn"] + p["vit"])[np.arange(50), labels],
    }
    if method == "dtkd":
        assert np.allclose(omega.sum(1), 1, atol=1e-5) and omega[:, 1].std() > 0.05
        certain, doubtful = ({**logits, "vit": factor * logits["vit"]} for factor in (10, 0.1))
        sure, unsure = (omega_of(DistillConfig(method=method), x, labels)[:, 1].mean() for x in (certain, doubtful))
        assert sure > unsure
    else:
        assert np.allclose(omega[:, 1], own[method], atol=1e-4)
    assert omega_of(DistillConfig(method=method), {k: v for k, v in logits.items() if k != "cnn"}, labels) is None


def test_what_is_kept_can_be_read_again(tmp_path: Path) -> None:
    found = made(5)
    page(tmp_path, found)
    kept = np.load(tmp_path / "predictions.npz")
    assert kept["action/classes"].tolist() == list(found.classes)
    assert np.array_equal(kept["action/logits/vit"], found.logits["vit"])
    assert np.array_equal(kept["action/labels"], found.labels)
