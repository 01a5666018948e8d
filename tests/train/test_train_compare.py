"""`dtkd-edge compare`: what it trains, what it refuses to mix, and its arithmetic."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from train_cases import SMALL

from dtkd_edge.data.catalogue import open_split
from dtkd_edge.errors import DtkdEdgeError, InputError, UsageError
from dtkd_edge.files import write_json
from dtkd_edge.recipe_reader import load
from dtkd_edge.train.command import train
from dtkd_edge.train.compare import _check_resplit, compare, seed_numbers, settings, spread, summarise, table
from dtkd_edge.train.compare_report import compare_page, csv_text
from dtkd_edge.train.jobs import Job, _State, duration

ONE_EPOCH = ["train.epochs=1", "teachers.cnn.train.epochs=1"]


def test_a_recipe_with_one_teacher_compares_what_reads_it_and_refuses_other_values(small: list[str], tmp_path: Path) -> None:
    overrides = [*small, *ONE_EPOCH, "teachers.vit=null"]
    out, methods = tmp_path / "out: #1", "ce,kd-cnn@temperature=2,kd-cnn"
    result = compare("quickstart", methods=methods, seeds=1, overrides=overrides, out=out, jobs=2)
    assert list(result["rows"]) == ["teacher cnn", "ce", "kd-cnn@temperature=2", "kd-cnn"]
    assert sorted(p.name for p in (out / "seed-0").iterdir()) == ["ce", "kd-cnn", "kd-cnn@temperature=2", "teachers"]
    assert load(out / "seed-0" / "kd-cnn@temperature=2" / "recipe.yaml").distill.temperature == 2
    told = json.loads((out / "compare.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["rows"]["ce"]["se"] is None  # of one seed
    before = (out / "seed-0" / "ce" / "metrics.json").read_bytes()
    assert compare("quickstart", methods=methods, seeds=1, overrides=overrides, out=out)["rows"] == result["rows"]
    assert (out / "seed-0" / "ce" / "metrics.json").read_bytes() == before  # not trained again
    lines = (out / "compare.csv").read_text().splitlines()
    assert lines[0] == "method,seed,top1" and lines[2] == f"ce,0,{result['rows']['ce']['top1'][0]:.6f}"
    assert "What kd-cnn gains over" in (out / "compare.html").read_text()
    with pytest.raises(UsageError, match=r"ce: holds a run with train\.lr = 0\.004, not 0\.5"):  # its teachers would do
        compare("quickstart", methods=methods, seeds=1, overrides=[*overrides, "train.lr=0.5"], out=out)
    with pytest.raises(UsageError, match=r"teachers: holds a run with teachers\.cnn\.train\.epochs = 1, not 2"):
        compare("quickstart", methods=methods, seeds=1, overrides=[*overrides, "teachers.cnn.train.epochs=2"], out=out)
    metrics = out / "seed-0" / "ce" / "metrics.json"
    written = metrics.read_text()
    metrics.write_text(written.replace('"losses": ', '"losses": 1'))
    with pytest.raises(UsageError, match=r"ce: holds a run of another version, whose losses were others"):
        compare("quickstart", methods=methods, seeds=1, overrides=overrides, out=out)
    metrics.write_text(written)
    for name in ("teachers", "kd-cnn"):  # to the teachers it is all one
        saved = out / "seed-0" / name / "recipe.yaml"
        saved.write_text(saved.read_text().replace("  align_taps: all\n", ""))
    with pytest.raises(UsageError, match=r"kd-cnn: holds a run of an earlier version, whose recipe has no distill\.align_taps"):
        compare("quickstart", methods=methods, seeds=1, overrides=overrides, out=out)


def test_clips_that_come_between_two_comparisons_move_none_that_was_held_out(motion_root: Path, tmp_path: Path) -> None:
    """What the first runs of a seed held out stays so for the methods, and the teachers, that are added later."""
    open_split(load("quickstart", [f"data.root={motion_root}", *SMALL]).data, "val")  # writes the set
    rows = (motion_root / "train.csv").read_text().splitlines()
    own = [f"data.root={motion_root}", f"data.train={tmp_path / 'own.csv'}", "data.kind=csv", "data.student_clips=null"]
    overrides = [*[s for s in SMALL if not s.startswith("data.")], *own, *ONE_EPOCH, "teachers.vit=null"]
    (tmp_path / "own.csv").write_text("\n".join(rows[:41]))
    compare("quickstart", methods="ce", seeds=1, overrides=overrides, out=tmp_path / "out")
    held = (tmp_path / "out" / "seed-0" / "ce" / "validation.txt").read_text()
    (tmp_path / "own.csv").write_text("\n".join(rows))
    assert set(open_split(load("quickstart", overrides).data, "val").names()) - set(held.splitlines())
    for _ in range(2):  # the second time all of them are finished
        compare("quickstart", methods="ce,kd-cnn", seeds=1, overrides=overrides, out=tmp_path / "out")
    for name in ("teachers", "kd-cnn"):
        assert (tmp_path / "out" / "seed-0" / name / "validation.txt").read_text() == held


@pytest.mark.parametrize("name", ["dtkd@", "dtkd@sdd", "dtkd@sdd=", "dtkd@method=ce", "dtkd@../x=1", "ce@seed=1/2"])
def test_a_setting_of_a_method_is_read_or_refused(name: str) -> None:
    assert settings("dtkd@branch.target=cnn@rkd=0") == ("distill.method=dtkd", "distill.branch.target=cnn", "distill.rkd=0")
    with pytest.raises(UsageError, match="METHOD@KEY=VALUE"):
        settings(name)


def test_summary_is_paired_by_seed(tmp_path: Path) -> None:
    for method, scores in {"ce": (0.5, 0.7), "dtkd": (0.6, 0.9)}.items():
        for seed, score in enumerate(scores):
            folder = tmp_path / f"seed-{seed}" / method
            folder.mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps({"student": {"action_top1": score, "n": 10}}))
    result = summarise(tmp_path, ["ce", "dtkd"], [0, 1], [])
    assert result["rows"]["ce"]["mean"] == pytest.approx(0.6)
    assert result["rows"]["ce"]["paired"]["mean"] == pytest.approx(0.15)
    assert result["rows"]["ce"]["paired"]["se"] == pytest.approx(0.05)
    assert "paired" not in result["rows"]["dtkd"]
    cells = [list(column.cells) for column in table({**result, "recipe": "x"}).columns]
    assert cells == [["ce", "dtkd"], ["60.0 ± 10.0", "75.0 ± 15.0"], ["14.1", "21.2"], ["+15.0 ± 5.0", ""]]


def test_the_page_shows_every_run_and_every_difference_where_it_belongs(tmp_path: Path) -> None:
    scores = {"teacher vit": [0.8, 0.9], "ce<": [0.5, 0.7], "dtkd": [0.6, 0.9]}
    rows = {name: {"top1": values, **spread(values)} for name, values in scores.items()}
    rows["ce<"]["paired"] = spread([0.1, 0.2])
    result = {"recipe": "x", "seeds": [0, 1], "reference": "dtkd", "rows": rows, "command": "dtkd-edge compare x"}
    page = compare_page(result)
    assert "ce&lt;" in page and "ce<" not in page and "<script" not in page and "http" not in page
    first, second = re.findall(r"<svg.*?</svg>", page)
    ElementTree.fromstring(first)
    places = {float(x): label for x, label in re.findall(r'x="([\d.]+)" y="\d+" text-anchor="middle">(\d+)</text>', first)}
    (left, low), (right, high) = sorted(places.items())[0], sorted(places.items())[-1]
    shown = sorted(float(x) for x in re.findall(r'class="dot faint s\d" cx="([\d.]+)"', first))
    per_point = (right - left) / (float(high) - float(low))
    wanted = sorted(left + (100 * v - float(low)) * per_point for values in scores.values() for v in values)
    assert shown == pytest.approx(wanted, abs=0.2)
    assert second.count("dot faint") == 2 and ">ce&lt;<" in second
    one = {"top1": [0.5], **spread([0.5])}
    assert "±" not in re.findall(r"<table.*?</table>", compare_page({**result, "rows": {"dtkd": one}}))[0]


@pytest.mark.parametrize(
    ("given", "numbers"),
    [(3, [0, 1, 2]), ("3", [0, 1, 2]), ("5-7", [5, 6, 7]), ("0,3,7", [0, 3, 7]), ("0-1, 4", [0, 1, 4]), ("7,", None)]
    + [(text, None) for text in ("0", "-1", "", "a", "3,3", "1-3,2", "3,9-5", "5-4", "1.5")],
)
def test_seeds_are_how_many_or_which(given: int | str, numbers: list[int] | None) -> None:
    if numbers is None:
        with pytest.raises(UsageError, match="--seeds"):
            seed_numbers(given)
    else:
        assert seed_numbers(given) == numbers


def test_differences_are_to_dtkd_wherever_it_stands_and_to_the_last_method_without_it(tmp_path: Path) -> None:
    for seed, scores in ((4, {"ce": 0.5, "dtkd": 0.6, "rkd": 0.4}), (6, {"ce": 0.7, "dtkd": 0.6, "rkd": 0.5})):
        for name, score in scores.items():
            write_json(tmp_path / f"seed-{seed}" / name / "metrics.json", {"student": {"action_top1": score}})
    found = summarise(tmp_path, ["ce", "dtkd", "rkd"], [4, 6], [])
    assert found["reference"] == "dtkd" and found["rows"]["rkd"]["paired"]["mean"] == pytest.approx(0.15)
    found = summarise(tmp_path, ["ce", "rkd"], [4, 6], [])
    assert found["reference"] == "rkd" and found["rows"]["ce"]["paired"]["mean"] == pytest.approx(-0.15)
    assert csv_text(found).splitlines()[1:3] == ["ce,4,0.500000", "ce,6,0.700000"]


def test_spread_of_one_value_is_none() -> None:
    assert spread([0.5]) == {"mean": 0.5, "std": None, "se": None}
    assert spread([0.4, 0.6])["se"] == pytest.approx(0.1)


def test_each_seed_may_hold_out_other_clips(small: list[str], tmp_path: Path) -> None:
    open_split(load("quickstart", small).data, "val")  # writes the set
    overrides = [*small, *ONE_EPOCH, "data.kind=csv", "data.train=train.csv"]
    compare("quickstart", methods="ce", seeds=2, overrides=overrides, out=tmp_path, resplit=True, jobs=2)
    held = []
    for seed in (0, 1):
        recipe = load(tmp_path / f"seed-{seed}" / "ce" / "recipe.yaml")
        assert (recipe.seed, recipe.data.seed) == (seed, seed)
        catalogue = open_split(recipe.data, "val")
        held.append({catalogue.path(i) for i in range(len(catalogue))})
    assert held[0] != held[1]
    with pytest.raises(UsageError, match="every seed holds out the same clips"):
        compare("quickstart", methods="ce", overrides=[*overrides, "data.val=val.csv"], out=tmp_path / "fixed", resplit=True)
    assert not (tmp_path / "fixed").exists()


@pytest.mark.parametrize(
    ("methods", "override", "said", "hint"),
    [
        ("ce", "phases=teachers", "--set phases: compare gives", "compare trains the teachers, then the students"),
        ("ce", "seed=7", "--set seed: compare gives", "use --seeds"),
        ("ce", "distill.method=rkd", "--set distill.method: compare gives", "use --methods"),
        ("dtkd,dtkd@branch.tap=stage9", "train.epochs=1", "distill.branch.tap: stage9: ", "its taps: "),
        ("kd-vit", "teachers.vit.train=null", "teachers.vit: neither weights nor train", "give a finished teacher's weights"),
        ("kd-vit", "teachers.vit.options={depht: 1}", "depht", ""),
        ("ce", "student.weights=absent.pth", "absent.pth", ""),
    ],
)
def test_what_one_training_would_refuse_is_said_before_any_begins(
    small: list[str], tmp_path: Path, methods: str, override: str, said: str, hint: str
) -> None:
    with pytest.raises(DtkdEdgeError) as refused:
        compare("quickstart", methods=methods, seeds=1, overrides=[*small, override], out=tmp_path / "out")
    assert said in refused.value.message and hint in refused.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that takes no files")
def test_a_place_that_takes_no_files_is_said_first(small: list[str]) -> None:
    for place in (Path("/proc/absent"), Path("/proc/absent/deeper")):
        with pytest.raises(InputError, match=f"{place}.*: not writable"):
            compare("quickstart", methods="ce", seeds=1, overrides=small, out=place)
        with pytest.raises(InputError, match=f"{place}.*: not writable"):
            train("quickstart", overrides=small, out=place)


def test_what_a_training_says_is_to_be_done_is_passed_on(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DtkdEdgeError) as failed:
        compare("quickstart", methods="ce", seeds="3-4", overrides=[*small, "device=cuda"], out=tmp_path)
    assert failed.value.message.startswith("seed 3, ce: device: cuda: ") and failed.value.exit_code == 4
    assert failed.value.hint.startswith("--set device=cpu, or ") and "the same command then goes on" in failed.value.hint
    assert not (tmp_path / "seed-4").exists()  # what has not begun does not begin


def test_how_far_it_is_and_what_is_left_is_read_from_the_logs(tmp_path: Path) -> None:
    def job(seed: int, method: str, seconds: list[float], epochs: int, *, done: bool = False) -> Job:
        made = Job(seed, method, tmp_path / f"{seed}-{method}", (), epochs)
        made.folder.mkdir()
        lines = [json.dumps({"phase": "student", "epoch": i + 1, "seconds": s}) for i, s in enumerate(seconds)]
        (made.folder / "log.jsonl").write_text("\n".join(['{"note": "x"}', *lines, '{"phase": "stu']))
        if done:
            (made.folder / "metrics.json").write_text("{}")
        return made

    teachers, ce = job(0, "teachers", [100.0], 1, done=True), job(0, "ce", [60.0] * 10, 10, done=True)
    dtkd, later = job(0, "dtkd", [120.0] * 4, 10), job(1, "ce", [], 10)
    state = _State([teachers, ce, dtkd, later], 1, [dtkd])
    assert state.seconds_left() == pytest.approx(6 * 120 + 10 * 60)
    assert state.line() == "2 of 4 done; seed 0: dtkd, epoch 4 of 10; about 22 min left"
    rkd = job(1, "rkd", [], 10)  # of which nothing is known: as the others' epochs, 10 of 60 s and 4 of 120 s
    assert _State([ce, dtkd, rkd], 1).seconds_left() == pytest.approx(6 * 120 + 10 * 1080 / 14)
    assert _State([ce, dtkd, rkd], 2).seconds_left() == pytest.approx((6 * 120 + 10 * 1080 / 14) / 2)
    assert _State([rkd], 1, [rkd]).line() == "0 of 1 done; seed 1: rkd, epoch 0 of 10"
    assert [duration(s) for s in (40, 89, 1500, 12600)] == ["40 s", "89 s", "25 min", "3.5 h"]


def test_what_cannot_be_held_out_anew_is_said(motion_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Segments of one file are different clips; too few groups, generated clips in one folder and a given seed are refused."""

    def sets(lines: list[str]) -> list[str]:
        (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
        return ["data.kind=csv", f"data.root={tmp_path}", "data.train=all.csv", "teachers.cnn=null", "teachers.vit=null"]

    (tmp_path / "a.mp4").write_bytes(b"1")
    (tmp_path / "b.mp4").write_bytes(b"2")
    segments = [f"{name}.mp4,{name},{i},{i + 1}" for name in "ab" for i in range(20)]
    _check_resplit("quickstart", sets(["path,label,start,end", *segments]), [0, 1])
    grouped = [f"{name}.mp4,{name},{i},{i + 1},{'large' if i < 18 else 'small'}" for name in "ab" for i in range(20)]
    with pytest.raises(UsageError, match="too few groups"):
        _check_resplit("quickstart", sets(["path,label,start,end,group", *grouped]), [0, 1, 2])
    with pytest.raises(UsageError, match="one folder"):
        _check_resplit("quickstart", [f"data.root={motion_root}"], [0, 1])
    with pytest.raises(UsageError, match=r"data\.seed"):
        _check_resplit("quickstart", ["data.seed=7"], [0, 1])
    capsys.readouterr()
    _check_resplit("quickstart", ["teachers.cnn.train=null"], [0])
    assert "teachers.cnn is not trained here" in capsys.readouterr().err
