"""`dtkd-edge eval` on official layouts and on other data, with a model that nobody trained."""

from __future__ import annotations

import csv
import json
import math
import shutil
import zipfile
from pathlib import Path

import numpy as np
import official_trees as trees
import pytest
import torch

from dtkd_edge import recipe_reader as recipes
from dtkd_edge.data.catalogue import open_split
from dtkd_edge.data.pack import Settings
from dtkd_edge.data.pack_shards import pack_shards
from dtkd_edge.errors import DataError, InputError, UsageError
from dtkd_edge.models.registry import create_model
from dtkd_edge.models.saved import ModelCard, save_model
from dtkd_edge.train.eval_command import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


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
    for part in ("unseen", "tail"):
        assert {head for head, row in result["parts"][part].items() if "top5" in row} == {
            "action"
        }  # the others have five at most
    said = capsys.readouterr().out
    assert all(column in said for column in ("unseen top-1", "unseen top-5", "tail top-1", "tail top-5"))
    matrix = np.loadtxt(tmp_path / "c-noun.csv", delimiter=",", skiprows=1, usecols=range(1, 6))
    assert matrix.sum(1).tolist() == [2, 2, 2, 2, 0]
    assert np.trace(matrix) / 8 == pytest.approx(result["heads"]["noun"]["top1"])
    assert (tmp_path / "c-verb.csv").is_file()


def official_scores(submission: Path, listed: Path) -> dict[str, tuple[float, float]]:
    """Top-1 and top-5 by the file alone, as its format says: verbs and nouns by their scores, actions by their pairs' scores."""
    if submission.suffix == ".zip":
        with zipfile.ZipFile(submission) as archive:
            assert archive.namelist() == ["test.json"]
            found = json.loads(archive.read("test.json"))
    else:
        found = json.loads(submission.read_text())
    assert found["version"] == "0.2" and found["challenge"] == "action_recognition"
    hits: dict[str, list[int]] = {"verb": [], "noun": [], "action": []}
    with listed.open(newline="") as stream:
        for row in csv.DictReader(stream):
            scores = found["results"].pop(row["narration_id"])
            right = {"verb": row["verb_class"], "noun": row["noun_class"], "action": f"{row['verb_class']},{row['noun_class']}"}
            for head, own in right.items():
                ranked = sorted(scores[head], key=lambda name: -scores[head][name])
                hits[head].append(ranked.index(own))
    assert found["results"] == {}
    return {head: tuple(float(np.mean(np.array(ranks) < k)) for k in (1, 5)) for head, ranks in hits.items()}  # type: ignore[misc]


@pytest.mark.parametrize("name", ["s.json", "s.zip"])
def test_the_challenge_file_scores_as_eval_does(tmp_path: Path, name: str) -> None:
    root = trees.epic100(tmp_path / "set", clips=12)
    run = untrained(tmp_path / "run", "epic100", root)
    result = evaluate(run, overrides=[], submission=tmp_path / name, sls="1,3,4")
    assert result["submission"]["segments"] == 24 and result["submission"]["missing"] == []
    found = official_scores(tmp_path / name, root / "epic-kitchens-100-annotations/EPIC_100_validation.csv")
    for head in ("verb", "noun", "action"):
        row = result["heads"][head]
        assert found[head] == pytest.approx((row["top1"], row.get("top5", 1.0))), head
    assert len({found[head][0] for head in found} | {found["action"][1]}) > 1  # not all of them 0 or 1
    if name == "s.json":
        written = json.loads((tmp_path / name).read_text())
        assert [written[level] for level in ("sls_pt", "sls_tl", "sls_td")] == [1, 3, 4]
        first = next(iter(written["results"].values()))
        assert [len(first[head]) for head in ("verb", "noun", "action")] == [4, 5, 20]
        v, n = next(iter(first["action"])).split(",")
        assert first["action"][f"{v},{n}"] == pytest.approx(first["verb"][v] + first["noun"][n], abs=1e-5)
        assert sum(math.exp(score) for score in first["noun"].values()) == pytest.approx(1, abs=1e-4)


def test_unlabelled_test_segments_get_a_file_and_no_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = trees.epic100_test(trees.epic100(tmp_path / "set", clips=4))
    run = untrained(tmp_path / "run", "epic100", root)
    test = ["data.val=EPIC_100_test_timestamps.csv"]
    with pytest.raises(DataError, match=r"data\.val: EPIC_100_test_timestamps\.csv has no labels"):
        evaluate(run, overrides=test)
    result = evaluate(run, overrides=test, submission=tmp_path / "s.json", views="2x1")
    assert result["heads"] == {} and "6 segments, not scored: " in capsys.readouterr().err
    written = json.loads((tmp_path / "s.json").read_text())["results"]
    assert list(written) == [f"P03_21_{i}" for i in range(6)]  # two of the same second are two
    assert written["P03_21_4"] == written["P03_21_5"] != written["P03_21_0"]
    video = root / "EPIC-KITCHENS/P03/videos/P03_21.MP4"
    lines = (root / "epic-kitchens-100-annotations/EPIC_100_test_timestamps.csv").read_text().replace("P03_21", "P03_22", 1)
    (root / "epic-kitchens-100-annotations/EPIC_100_test_timestamps.csv").write_text(lines.replace(",P03_21,", ",P03_22,", 1))
    with pytest.raises(DataError, match=r"1 of 6 videos are missing, more than data\.max_missing = 0"):
        evaluate(run, overrides=test, submission=tmp_path / "s.json")
    shutil.copy(video, video.with_name("P03_22.MP4"))
    video.with_name("P03_22.MP4").write_bytes(b"")
    result = evaluate(run, overrides=test, submission=tmp_path / "s.json")
    assert result["submission"]["missing"] == ["P03_22_0"]
    assert "lacks 1 segment that cannot be decoded, such as P03_22_0" in capsys.readouterr().err


def test_a_model_with_other_class_numbers_writes_the_official_ones(tmp_path: Path) -> None:
    root = trees.epic100(tmp_path / "set", clips=4)
    run = untrained(tmp_path / "run", "epic100", root)
    evaluate(run, overrides=[], submission=tmp_path / "a.json")
    card = json.loads((run / "student.json").read_text())
    order = [2, 0, 3, 1]  # the model's class i is now what class order[i] was called
    names = card["labels"]["verb"]
    card["labels"]["verb"] = [names[i] for i in order]
    (run / "student.json").write_text(json.dumps(card))
    evaluate(run, overrides=[], submission=tmp_path / "b.json")
    one, other = (json.loads((tmp_path / f"{n}.json").read_text())["results"]["P01_02_0"]["verb"] for n in "ab")
    assert [other[str(order[i])] for i in range(4)] == [one[str(i)] for i in range(4)]


def test_submissions_that_cannot_be(tmp_path: Path) -> None:
    root = trees.hmdb51(tmp_path / "set")
    run = untrained(tmp_path / "run", "hmdb51", root)
    with pytest.raises(DataError, match="--submission: hmdb51 has no verbs, nouns and narration ids"):
        evaluate(run, overrides=[], submission=tmp_path / "s.json")
    with pytest.raises(UsageError, match=r"--submission .*s\.csv: expected \.json or \.zip"):
        evaluate(run, overrides=[], submission=tmp_path / "s.csv")
    for levels in ("1,2", "1,2,6", "a,b,c"):
        with pytest.raises(UsageError, match=f"--sls {levels}: expected three levels"):
            evaluate(run, overrides=[], submission=tmp_path / "s.json", sls=levels)


def test_a_packed_set_keeps_what_the_challenge_needs(tmp_path: Path) -> None:
    root = trees.epic100(tmp_path / "set", clips=4)
    run = untrained(tmp_path / "run", "epic100", root)
    pack_shards("epic100", tmp_path / "shards", overrides=[f"data.root={root}"], settings=Settings(short=32), per_shard=3)
    packed = evaluate(run, overrides=["data.kind=shards", f"data.root={tmp_path / 'shards'}"], submission=tmp_path / "s.json")
    assert packed["n"] == 8 and set(packed["parts"]) == {"unseen", "tail"}
    found = official_scores(tmp_path / "s.json", root / "epic-kitchens-100-annotations/EPIC_100_validation.csv")
    assert found["action"][0] == pytest.approx(packed["heads"]["action"]["top1"])


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
