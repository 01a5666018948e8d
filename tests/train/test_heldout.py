"""Students of a comparison on clips that none of its runs has seen: real clips, real networks, `eval` as the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dtkd_edge
from dtkd_edge import recipe_reader as recipes
from dtkd_edge.data.scene import CLASSES
from dtkd_edge.models.registry import create_model
from dtkd_edge.models.saved import ModelCard, save_model
from dtkd_edge.train import heldout
from dtkd_edge.train.testing import evaluate_target

FRESH = ["data.seed=5", "data.clips=16", "data.val_clips=40"]


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Two methods, two seeds; nobody has trained these students."""
    recipe = recipes.load("quickstart", [f"data.root={tmp_path / 'own'}", "data.frame_size=32", "student.size=24"])
    for number, (method, seed) in enumerate((m, s) for m in ("ce", "dtkd") for s in (0, 1)):
        run = tmp_path / "out" / f"seed-{seed}" / method
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(recipe.to_yaml())
        torch.manual_seed(number)
        model = create_model("tsm_tiny", {"action": 8}, frames=8, size=24, width=8)
        card = ModelCard(
            version=dtkd_edge.__version__,
            model="tsm_tiny",
            frames=8,
            stride=1,
            size=24,
            options={"width": 8},
            labels={"action": CLASSES["motion"]},
            preprocess=recipe.preprocess(8, 24),
        )
        save_model(run / "student", model, card)
    (tmp_path / "out" / "seed-2" / "dtkd").mkdir(parents=True)  # not finished
    return tmp_path / "out"


def test_every_finished_student_is_scored_as_eval_scores_it(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = [f"data.root={tmp_path / 'fresh'}", *FRESH]
    sets = [part for override in fresh for part in ("--set", override)]
    monkeypatch.setattr("sys.argv", ["heldout", str(comparison), *sets, "--csv", str(tmp_path / "scores.csv")])
    heldout.main()
    lines = (tmp_path / "scores.csv").read_text().split()
    assert lines[0] == "method,seed,top1" and len(lines) == 5
    for line in lines[1:]:
        method, seed, top1 = line.split(",")
        want = evaluate_target(comparison / f"seed-{seed}" / method, fresh, (1, 1)).result
        assert want["n"] == 40 and float(top1) == pytest.approx(want["heads"]["action"]["top1"], abs=1e-6)
    told = capsys.readouterr().out
    assert "40 clips" in told and "| dtkd |" in told and "| ce |" in told


def test_a_folder_without_students_is_named(tmp_path: Path) -> None:
    with pytest.raises(heldout.InputError, match="no finished student"):
        heldout.find_students(tmp_path)


def test_the_error_over_clips_is_in_the_second_figure_alone() -> None:
    generator = np.random.default_rng(1)
    clips = generator.integers(0, 2, 400) - generator.integers(0, 2, 400)  # a difference of two methods, variance 1/2
    same = np.tile(clips, (5, 1)).astype(float)
    over_seeds, over_both = heldout.standard_errors(same)
    assert over_seeds < 1e-12 and over_both == pytest.approx(same[0].std() / 20, rel=0.1)
    apart = np.repeat(np.array([[-1.0], [0.0], [1.0], [2.0]]), 400, 1)  # seeds differ, clips do not
    over_seeds, over_both = heldout.standard_errors(apart)
    assert over_seeds == pytest.approx(apart[:, 0].std(ddof=1) / 2)
    assert over_both == pytest.approx(over_seeds)
    both = same + np.repeat(np.array([[-0.1], [0.0], [0.1], [0.2], [-0.2]]), 400, 1)
    seeds_only, together = heldout.standard_errors(both)
    assert together == pytest.approx((seeds_only**2 + clips.var() / 400) ** 0.5, rel=0.05)


def test_methods_are_paired_by_their_seeds() -> None:
    right, wrong = np.ones(50, bool), np.zeros(50, bool)
    hits = {"dtkd": {0: right, 1: wrong, 2: right}, "ce": {1: wrong, 2: right, 3: right}, "rkd": {7: wrong}}
    rows = {line.split("|")[1].strip(): line for line in heldout.table(hits, "dtkd")[2:]}
    assert "+0.0 (2 seeds)" in rows["ce"]  # of seeds 1 and 2; by position it would be another figure
    assert rows["rkd"].endswith("| | | |")


@pytest.mark.parametrize(
    "arguments, told", [(["--methods", "cee"], "cee"), (["--reference", "ofa"], "ofa"), (["--set", "data.kind=order"], "classes")]
)
def test_what_is_not_there_is_named(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    fresh = [f"data.root={tmp_path / 'other'}", *FRESH]
    sets = [part for override in fresh for part in ("--set", override)]
    monkeypatch.setattr("sys.argv", ["heldout", str(comparison), *sets, *arguments])
    with pytest.raises((heldout.InputError, heldout.UsageError), match=told):
        heldout.main()
