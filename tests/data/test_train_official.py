"""Official layouts through the command line: trained for a step and scored, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import official_trees as trees
import pytest

from dtkd_edge.errors import InputError, RecipeError, UsageError

TINY = [
    "student.model=tsm_tiny", "student.frames=4", "student.size=24",
    "teachers.cnn.model=tsm_tiny", "teachers.cnn.frames=4", "teachers.cnn.size=24",
    "teachers.vit.model=vit_tubelet_tiny", "teachers.vit.frames=4", "teachers.vit.size=24", "teachers.vit.weights=none",
    "teachers.vit.options={dim: 24, depth: 1, num_heads: 2}", "data.stride=4",
    "teachers.cnn.train.epochs=1", "teachers.vit.train.epochs=1", "train.epochs=1",
    "teachers.cnn.train.batch_size=8", "teachers.vit.train.batch_size=8", "train.batch_size=8", "threads=1",
]  # fmt: skip
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Main = Callable[..., tuple[int, str, str]]

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
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("kind", "make", "more", "heads", "said"), SETS)
def test_train_and_eval(
    main: Main,
    tmp_path: Path,
    kind: str,
    make: Callable[[Path], Path],
    more: list[str],
    heads: dict[str, int],
    said: str,
) -> None:
    root = make(tmp_path / "set")
    sets = [part for override in [f"data.root={root}", *TINY, *more] for part in ("--set", override)]
    run = tmp_path / "run"
    code, _, told = main("train", kind, *sets, "--out", run)
    assert code == 0, told
    assert said in told
    card = json.loads((run / "student.json").read_text())
    assert {head: len(names) for head, names in card["labels"].items()} == heads
    code, scored, told = main("eval", run, "--json", "-")
    assert code == 0, told
    result = json.loads(scored)
    assert set(heads) <= set(result["heads"])
    metrics = json.loads((run / "metrics.json").read_text())["student"]
    for head in heads:
        assert result["heads"][head]["top1"] == pytest.approx(metrics[f"{head}_top1"])


LISTS = ["data.train=train.txt", "data.val=val.txt", "data.sampling=uniform"]
OTHERS: list[tuple[str, str, Callable[[Path], Path], list[str], int, tuple[int, int]]] = [
    ("ucf101", "ucf101", trees.ucf101, [], 2, (4, 2)),
    ("ssv2", "ssv2", trees.ssv2, [], 2, (4, 4)),
    ("kinetics400", "kinetics600", trees.kinetics_without_is_cc, [], 3, (17, 6)),
    ("kinetics400", "kinetics700", trees.kinetics_without_is_cc, [], 3, (17, 6)),
    ("folder", "video-list", trees.video_list, [*LISTS, "data.videos=videos"], 2, (8, 4)),
    ("folder", "frame-list", trees.frame_list, [*LISTS, "data.videos=rawframes"], 2, (8, 4)),
]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("recipe", "kind", "make", "more", "classes", "clips"), OTHERS, ids=[kind for _, kind, *_ in OTHERS])
def test_the_other_kinds_train_a_step_and_score(
    tmp_path: Path,
    recipe: str,
    kind: str,
    make: Callable[[Path], Path],
    more: list[str],
    classes: int,
    clips: tuple[int, int],
) -> None:
    from dtkd_edge.train.command import train
    from dtkd_edge.train.eval_command import evaluate

    plain = ["student.options={}", "teachers.cnn.options={}"] if recipe == "folder" else []  # those of the networks it names
    root = make(tmp_path / "set")
    run = train(recipe, overrides=[f"data.kind={kind}", f"data.root={root}", *plain, *TINY, *more], out=tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["clips"]["train"], metrics["clips"]["val"]) == clips
    assert set(metrics["teachers"]) == {"cnn", "vit"} and metrics["student"]["n"] == clips[1]
    assert len(json.loads((run / "student.json").read_text())["labels"]["action"]) == classes
    assert evaluate(run, overrides=[])["heads"]["action"]["top1"] == pytest.approx(metrics["student"]["action_top1"])
    result = evaluate(run, overrides=[], views="2x1")
    assert (result["n"], result["broken"]) == (clips[1], 0)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_every_official_split_and_their_mean(dtkd_edge: Run, main: Main, tmp_path: Path) -> None:
    root = trees.hmdb51(tmp_path / "set")
    sets = [part for override in [f"data.root={root}", *TINY, "distill.method=ce"] for part in ("--set", override)]
    done = dtkd_edge("train", "hmdb51", *sets, "--splits", "1,2,3")
    assert done.returncode == 0, done.stderr
    assert all(column in done.stdout for column in ("split 1", "split 2", "split 3", "mean"))
    runs = tmp_path / "empty/runs/hmdb51-splits"
    result = json.loads((runs / "splits.json").read_text())
    single = [json.loads((runs / f"split-{n}/metrics.json").read_text())["student"]["action_top1"] for n in (1, 2, 3)]
    assert result["mean"]["student"]["action_top1"] == pytest.approx(sum(single) / 3)
    recipes = [(runs / f"split-{n}/recipe.yaml").read_text() for n in (1, 2, 3)]
    assert [f"split: {n}" in recipe for n, recipe in enumerate(recipes, 1)] == [True] * 3
    code, scored, said = main("eval", runs, "--splits", "1,2,3", "--json", "-")
    assert code == 0, said
    tested = json.loads(scored)
    assert [tested["splits"][n]["heads"]["action"]["top1"] for n in "123"] == pytest.approx(single)
    assert tested["mean"]["action"]["top1"] == pytest.approx(sum(single) / 3) and tested["views"] == "1x1"
    code, _, said = main("train", "hmdb51", *sets, "--splits", "1,2,3", "--out", runs, "--resume")
    assert code == 0 and said.count("this run is finished") == 3


@pytest.mark.slow
def test_two_processes_train_one_split_after_the_other(tmp_path: Path) -> None:
    root = trees.hmdb51(tmp_path / "set")
    sets = [part for override in [f"data.root={root}", *TINY, "distill.method=ce"] for part in ("--set", override)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dtkd_edge"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    command = [*launch, "train", "hmdb51", *sets, "--splits", "1,2", "--out", "runs"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "runs/splits.json").read_text())["splits"]) == {"1", "2"}
    assert done.stderr.count("split 2 (2 of 2)") == 1 and done.stdout.count("official splits") == 1  # one process alone speaks


def test_splits_that_do_not_fit(tmp_path: Path) -> None:
    from dtkd_edge.train.splits import evaluate_splits, train_splits

    for splits in ("1,4", "2,2", "", "one"):
        with pytest.raises(UsageError, match=f"--splits {splits}: expected official splits, such as 1,2,3"):
            train_splits("hmdb51", splits, overrides=[])
        with pytest.raises(UsageError, match=f"--splits {splits}: expected official splits, such as 1,2,3"):
            evaluate_splits(tmp_path, splits, overrides=[])
    with pytest.raises(InputError, match=r"has no run split-2 .*train RECIPE --splits 1,2,3"):
        evaluate_splits(tmp_path, "2", overrides=[])
    with pytest.raises(RecipeError, match=r"data\.kind: motion has no official splits"):
        train_splits("quickstart", "1", overrides=[])
