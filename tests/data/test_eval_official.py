"""`dtkd-edge eval` on official layouts and on other data, with a model that nobody trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import official_trees as trees
import pytest
import torch

from dtkd_edge import recipe as recipes
from dtkd_edge.data.catalogue import open_split
from dtkd_edge.errors import DataError, InputError
from dtkd_edge.models.registry import create_model
from dtkd_edge.models.saved import ModelCard, save_model
from dtkd_edge.train.command import evaluate


def untrained(run: Path, kind: str, root: Path, *more: str) -> Path:
    """A run folder as `train` leaves it, without the training."""
    sets = ["student.model=tsm_tiny", "student.frames=4", "student.size=24", f"data.root={root}", *more]
    config = recipes.load(kind, sets)
    run.mkdir()
    (run / "recipe.yaml").write_text(config.to_yaml())
    labels = open_split(config.data, "train").classes
    torch.manual_seed(0)
    model = create_model("tsm_tiny", {head: len(names) for head, names in labels.items()}, frames=4, size=24)
    card = ModelCard(
        version="0", model="tsm_tiny", frames=4, stride=1, size=24, labels=labels, preprocess=config.preprocess(4, 24)
    )
    save_model(run / "student", model, card)
    return run


@pytest.mark.parametrize("frames", [False, True])
def test_epic_scores_verb_noun_action_and_parts(tmp_path: Path, frames: bool, capsys: pytest.CaptureFixture[str]) -> None:
    root = trees.epic100(tmp_path / "set", frames=frames, clips=4)
    names = ["data.frame_names=frame_%010d.jpg"] if frames else []
    run = untrained(tmp_path / "run", "epic100", root, *names)
    result = evaluate(run, overrides=[], views="2x3", confusion=tmp_path / "c.csv")
    assert result["n"] == 8 and set(result["heads"]) == {"verb", "noun", "action"}
    assert "top5" in result["heads"]["action"] and "top5" not in result["heads"]["noun"]
    assert result["heads"]["action"]["top1"] <= min(result["heads"][head]["top1"] for head in ("verb", "noun"))
    assert {head: row["n"] for head, row in result["parts"]["unseen"].items()} == {"verb": 4, "noun": 4, "action": 4}
    assert {head: row["n"] for head, row in result["parts"]["tail"].items()} == {"verb": 2, "noun": 2, "action": 2}
    assert "unseen top-1" in capsys.readouterr().out
    matrix = np.loadtxt(tmp_path / "c-noun.csv", delimiter=",", skiprows=1, usecols=range(1, 6))
    assert matrix.sum(1).tolist() == [2, 2, 2, 2, 0]
    assert np.trace(matrix) / 8 == pytest.approx(result["heads"]["noun"]["top1"])
    assert (tmp_path / "c-verb.csv").is_file()


def test_eval_on_other_data_matches_classes_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = trees.hmdb51(tmp_path / "set")
    run = untrained(tmp_path / "run", "hmdb51", root)
    own = evaluate(run, overrides=[])
    other = tmp_path / "other"
    for name in reversed(trees.CLASSES):  # the very test clips, as folders; and a class that the model does not know
        (other / "val" / name).mkdir(parents=True)
        for i in (6, 7):
            shutil.copy(root / "videos" / name / f"[x] A!;&(b)_{name}_{i}.avi", other / "val" / name)
    shutil.copytree(other / "val", other / "train")
    assert evaluate(run, overrides=[], data=other)["heads"] == own["heads"]
    lines = "".join(f'"val/{n}/[x] A!;&(b)_{n}_{i}.avi",{n}\n' for n in ("walk", "ride_bike") for i in (6, 7))
    listed = trees.text(other / "list.csv", f"path,label\n{lines}val/walk/[x] A!;&(b)_walk_6.avi,juggle\n")
    result = evaluate(run, overrides=[], data=listed, json=str(tmp_path / "r.json"))
    assert (result["n"], result["unknown"]) == (4, 1)
    assert "does not know 1 of the data set's 3 classes, such as 'juggle'" in capsys.readouterr().err
    trees.text(other / "list.csv", "path,label\nval/walk/[x] A!;&(b)_walk_6.avi,juggle\n")
    with pytest.raises(DataError, match="none of its 3 classes of head action is among the data set's 1"):
        evaluate(run, overrides=[], data=listed)
    with pytest.raises(InputError, match=r"--data .*nowhere: no such folder or list"):
        evaluate(run, overrides=[], data=tmp_path / "nowhere")
