"""`dtkd-edge compare`: what it trains, what it refuses to mix, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtkd_edge.errors import UsageError
from dtkd_edge.train.compare import compare, spread, summarise, table

ONE_EPOCH = ["train.epochs=1", "teachers.cnn.train.epochs=1"]


def test_a_recipe_with_one_teacher_compares_what_reads_it_and_refuses_other_values(small: list[str], tmp_path: Path) -> None:
    overrides = [*small, *ONE_EPOCH, "teachers.vit=null"]
    out = tmp_path / "out"
    result = compare("quickstart", methods="ce,kd-cnn", seeds=1, overrides=overrides, out=out)
    assert list(result["rows"]) == ["teacher cnn", "ce", "kd-cnn"]
    assert sorted(p.name for p in (out / "seed-0").iterdir()) == ["ce", "kd-cnn", "teachers"]
    told = json.loads((out / "compare.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["rows"]["ce"]["se"] is None  # of one seed
    before = (out / "seed-0" / "ce" / "metrics.json").read_bytes()
    assert compare("quickstart", methods="ce,kd-cnn", seeds=1, overrides=overrides, out=out)["rows"] == result["rows"]
    assert (out / "seed-0" / "ce" / "metrics.json").read_bytes() == before  # not trained again
    with pytest.raises(UsageError, match=r"train\.lr = 0\.004, not 0\.5"):
        compare("quickstart", methods="ce,kd-cnn", seeds=1, overrides=[*overrides, "train.lr=0.5"], out=out)


def test_summary_is_paired_by_seed(tmp_path: Path) -> None:
    for method, scores in {"ce": (0.5, 0.7), "dtkd": (0.6, 0.9)}.items():
        for seed, score in enumerate(scores):
            folder = tmp_path / f"seed-{seed}" / method
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps({"student": {"action_top1": score, "n": 10}}))
    result = summarise(tmp_path, ["ce", "dtkd"], 2, [])
    assert result["rows"]["ce"]["mean"] == pytest.approx(0.6)
    assert result["rows"]["ce"]["paired"]["mean"] == pytest.approx(0.15)
    assert result["rows"]["ce"]["paired"]["se"] == pytest.approx(0.05)
    assert "paired" not in result["rows"]["dtkd"]
    cells = [list(column.cells) for column in table({**result, "recipe": "x"}).columns]
    assert cells == [["ce", "dtkd"], ["60.0 ± 10.0", "75.0 ± 15.0"], ["14.1", "21.2"], ["+15.0 ± 5.0", ""]]


def test_spread_of_one_value_is_none() -> None:
    assert spread([0.5]) == {"mean": 0.5, "std": None, "se": None}
    assert spread([0.4, 0.6])["se"] == pytest.approx(0.1)
