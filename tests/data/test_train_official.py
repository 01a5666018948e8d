"""Official layouts through the command line: trained for a step and scored, as a user types it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import official_trees as trees
import pytest

TINY = [
    "student.model=tsm_tiny", "student.frames=4", "student.size=24",
    "teachers.cnn.model=tsm_tiny", "teachers.cnn.frames=4", "teachers.cnn.size=24",
    "teachers.vit.model=vit_tubelet_tiny", "teachers.vit.frames=4", "teachers.vit.size=24",
    "teachers.vit.options={dim: 24, depth: 1, num_heads: 2}",
    "teachers.cnn.train.epochs=1", "teachers.vit.train.epochs=1", "train.epochs=1",
    "teachers.cnn.train.batch_size=8", "teachers.vit.train.batch_size=8", "train.batch_size=8", "threads=1",
]  # fmt: skip
Run = Callable[..., "subprocess.CompletedProcess[str]"]

SETS: list[tuple[str, Callable[[Path], Path], list[str], dict[str, int], str]] = [
    ("hmdb51", trees.hmdb51, [], {"action": 3}, ""),
    ("kinetics400", trees.kinetics, [], {"action": 3}, "1 of 18 videos are missing"),
    ("epic100", trees.epic100, [], {"verb": 4, "noun": 5}, ""),
    (
        "epic100",
        lambda root: trees.epic100(root, frames=True),
        ["data.frame_names=frame_%010d.jpg"],
        {"verb": 4, "noun": 5},
        "",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "make", "more", "heads", "said"), SETS)
def test_train_and_eval(
    dtkd_edge: Run,
    tmp_path: Path,
    kind: str,
    make: Callable[[Path], Path],
    more: list[str],
    heads: dict[str, int],
    said: str,
) -> None:
    root = make(tmp_path / "set")
    sets = [part for override in [f"data.root={root}", *TINY, *more] for part in ("--set", override)]
    done = dtkd_edge("train", kind, *sets, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    run = tmp_path / "empty/run"
    card = json.loads((run / "student.json").read_text())
    assert {head: len(names) for head, names in card["labels"].items()} == heads
    scored = dtkd_edge("eval", "run", "--json", "-")
    assert scored.returncode == 0, scored.stderr
    result = json.loads(scored.stdout)
    assert set(heads) <= set(result["heads"])
    metrics = json.loads((run / "metrics.json").read_text())["student"]
    for head in heads:
        assert result["heads"][head]["top1"] == pytest.approx(metrics[f"{head}_top1"])
