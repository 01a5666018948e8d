"""`dtkd-edge data check` and `data synth`, as a user calls them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import official_trees as trees
import pytest
from PIL import Image

from dtkd_edge import fonts
from dtkd_edge.data import check as module
from dtkd_edge.data.catalogue import Clip
from dtkd_edge.data.check import check
from dtkd_edge.data.motion import write_video
from dtkd_edge.errors import DataError, RecipeError

Main = Callable[..., tuple[int, str, str]]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dtkd_edge", "data", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", [["data", "check"], ["train"]])
def test_own_clips_without_their_recipe(tmp_path: Path, command: list[str], main: Main) -> None:
    (tmp_path / "my clips/wave").mkdir(parents=True)
    (tmp_path / "my clips/wave/1.mp4").write_bytes(b"")
    code, _, said = main(*command, "--set", f"data.root={tmp_path}/my clips")
    assert code == 3 and "holds clips, and data.kind is motion, a set that is generated" in said
    assert f"fix: name the recipe for your own clips: dtkd-edge data check folder --set data.root='{tmp_path}/my clips'" in said


def test_synth_then_check(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    made = run("synth", str(folder), "--clips", "16", "--val-clips", "16", "--size", "32")
    assert made.returncode == 0, made.stderr
    assert made.stdout == ""
    again = run("synth", str(folder), "--clips", "17", "--val-clips", "16", "--size", "32")
    assert again.returncode == 3
    assert again.stderr.startswith("error: ") and "another generated set" in again.stderr and "fix: " in again.stderr
    checked = run("check", "folder", "--set", f"data.root={folder}", "--json", "-")
    assert checked.returncode == 0, checked.stderr
    report = json.loads(checked.stdout)
    assert report["train"]["clips"] == report["val"]["clips"] == 16
    assert report["train"]["width"] == {"min": 32, "median": 32.0, "max": 32}
    assert report["train"]["clips_per_class"]["action"] == dict.fromkeys(report["train"]["clips_per_class"]["action"], 2)
    assert report["on_both_sides"] == []
    assert 12 <= report["train"]["frames"]["min"] <= report["train"]["frames"]["max"] <= 24


def test_broken_files_and_copies_are_named(broken_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for side, names in (("train", ("a", "b")), ("val", ("a", "b"))):
        (broken_folder / side).mkdir()
        for name in names:
            shutil.copytree(broken_folder / name, broken_folder / side / name, symlinks=True)
    shutil.copy(broken_folder / "train/b/b0.mp4", broken_folder / "train/b/again.mp4")
    shutil.copy(broken_folder / "val/b/b1.mp4", broken_folder / "val/a/wrong.mp4")
    override = [f"data.root={broken_folder}", "data.max_broken=1"]
    result = check("folder", overrides=override, json=None)
    names = {Path(p).name for p in result["train"]["broken"]}
    assert names == {"empty.mp4", "truncated.mp4", "text.mp4", "gone.mp4", "zero.mp4"}
    assert all("\n" not in why and why for why in result["train"]["broken"].values())
    assert len(result["on_both_sides"]) == 9
    assert [sorted(Path(p).name for p in same) for same in result["train"]["copies"]] == [["again.mp4", "b0.mp4"]]
    assert result["train"]["copies_with_another_label"] == []
    (contradiction,) = result["val"]["copies_with_another_label"]
    assert sorted(Path(p).name for p in contradiction) == ["b1.mp4", "wrong.mp4"]
    out, err = capfd.readouterr()
    assert "broken files" in out
    assert "empty.mp4: the file is empty" in err
    assert f"train: copies of {broken_folder}/train/b/again.mp4: {broken_folder}/train/b/b0.mp4" in err
    assert f"val: the same clip with different labels: {broken_folder}/val/a/wrong.mp4, {broken_folder}/val/b/b1.mp4" in err
    assert "val: copies" not in err  # the pair is said already
    with pytest.raises(DataError, match=r"train: 5 of 14 do not decode, more than data\.max_broken = 0\.05"):
        check("folder", overrides=override[:1], json=None)


def test_many_copies_are_summed_up(motion_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clips = sorted((motion_folder / "videos/train").iterdir())
    for number, clip in enumerate(clips[:12]):
        for copy in range(14 if number == 0 else 2):
            place = tmp_path / "train" / "ab"[number % 2] / f"{number}-{copy}.mp4"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(clip, place)
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    check("folder", overrides=[f"data.root={tmp_path}"], json=None)
    said = capfd.readouterr().err.splitlines()
    copies = [line for line in said if line.startswith("train: copies")]
    assert len(copies) == 11 and copies[-1] == "train: copies … 2 more (all of them: --json FILE)"
    assert copies[0].endswith(", … 3 more") and copies[0].count(".mp4") == 11
    assert sum(line.startswith("on both sides:") for line in said) == 11


def test_each_side_may_have_its_share_of_broken_files(motion_folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(motion_folder, tmp_path / "set"))
    override = [f"data.root={root}"]
    for i in range(2):
        (root / f"videos/train/00000{i}.mp4").write_bytes(b"")
    assert len(check("folder", overrides=override, json="-")["train"]["broken"]) == 2  # of 40
    for i in range(2):
        (root / f"videos/train/00000{i}.mp4").write_bytes((root / "videos/train/000009.mp4").read_bytes())
        (root / f"videos/val/00000{i}.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"val: 2 of 16 do not decode"):  # of both sides together it would be 2 of 56
        check("folder", overrides=override, json="-")


def test_an_interrupted_check_goes_on(
    broken_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DTKD_EDGE_CACHE", str(cache))
    overrides = [f"data.root={broken_folder}", "data.max_broken=1"]
    real, names, limit = module.read_through, [], [6]

    def counting(clip: Clip) -> module.Read:
        if len(names) == limit[0]:
            raise KeyboardInterrupt
        names.append(clip.path.name)
        return real(clip)

    monkeypatch.setattr(module, "read_through", counting)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: {0})
    with pytest.raises(KeyboardInterrupt):
        check("folder", overrides=overrides, json=None)
    journal = next(cache.glob("check-*.jsonl"))
    with journal.open("a") as stream:
        stream.write('["half a li')  # a kill in the middle of a line
    before, names[:], limit[:] = list(names), [], [99]
    changed = broken_folder / "a/a1.mp4"
    assert changed.name in before
    changed.write_bytes(changed.read_bytes() + b"\0" * 8)
    result = check("folder", overrides=overrides, json=None)
    assert set(names) == {"a1.mp4"} | ({p.name for p in broken_folder.rglob("*.mp4")} - set(before))
    assert "going on with an interrupted check: 6 files read already" in capfd.readouterr().err
    assert result["train"]["files"] + result["val"]["files"] == 13
    assert not journal.exists()


def test_a_cache_that_cannot_be_written_is_done_without(
    motion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DTKD_EDGE_CACHE", str(tmp_path / "file/cache"))
    assert check("folder", overrides=[f"data.root={motion_folder}"], json="-")["train"]["files"] == 40


def test_contact_sheet(motion_folder: Path, tmp_path: Path) -> None:
    colors = {"да [x]": (200, 20, 20), "но [x]": (20, 20, 200)}
    for name, color in colors.items():
        for i in range(8):
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            write_video(tmp_path / "set" / name / f"{i}.mp4", np.full((5, 48, 64, 3), color, np.uint8), 10)
    (tmp_path / "set/да [x]/0.mp4").write_bytes(b"")
    check("folder", overrides=[f"data.root={tmp_path / 'set'}", "data.max_broken=1"], json="-", sheet=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as opened:
        picture = np.asarray(opened)
    for row, name in enumerate(sorted(colors)):
        line = picture[4 + row * 100 + 48]
        shown = [line[220 + column * 132 + 64] for column in range(6)]
        near = [np.abs(pixel.astype(int) - colors[name]).max() < 30 for pixel in shown]
        assert sum(near) >= 5  # of eight clips one or two are held out, one is broken
        assert picture[row * 100 + 4 : row * 100 + 100, :220].min() < 100  # its name
    if not fonts.font_for("дано", 14).getname()[0].startswith("Aileron"):  # Pillow's own, where no other is installed
        rows = [picture[top : top + 24, :220] for top in (30, 130)]
        assert (rows[0] != rows[1]).any()  # not two boxes each


def test_raw_frames_are_checked_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = trees.epic100(tmp_path / "set", frames=True, clips=3)
    names = [f"data.root={root}", "data.frame_names=frame_%010d.jpg"]
    result = check("epic100", overrides=names, json=None)
    assert result["train"]["files"] == 6 and result["train"]["frames"]["max"] <= 21
    assert result["train"]["clips_per_class"]["verb"] == {"take": 2, "put": 2, "wash": 2, "open": 0}
    assert result["on_both_sides"]  # the miniature set has the same pixels everywhere
    (root / "EPIC-KITCHENS/P01/rgb_frames/P01_01/frame_0000000005.jpg").unlink()
    (root / "EPIC-KITCHENS/P02/rgb_frames/P02_101/frame_0000000040.jpg").write_bytes(b"no picture")
    broken = check("epic100", overrides=[*names, "data.max_broken=1"], json=None)["train"]["broken"]
    assert list(broken.values()) == [
        "frame_0000000005.jpg: no such frame",
        "frame_0000000040.jpg: not a picture: cannot identify image file",
    ]


def test_clips_past_the_end_of_their_file(tmp_path: Path) -> None:
    root = trees.epic100(tmp_path / "set", clips=3)
    trees.video(root / "EPIC-KITCHENS/P02/videos/P02_101.MP4", frames=15, rate=20)
    result = check("epic100", overrides=[f"data.root={root}"], json=None)
    assert len(result["train"]["past_the_end"]) == 1
    assert result["train"]["past_the_end"][0].endswith("P02_101.MP4: starts at 1 s, the file has 0.8 s")


def test_missing_videos_are_counted_and_named(tmp_path: Path) -> None:
    root = trees.kinetics(tmp_path / "set")  # the last training clip of the first class is not there
    common = ("check", "kinetics400", "--set", f"data.root={root}", "--json")
    done = run(*common, str(tmp_path / "r.json"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    gone = f"{root}/videos/train/abseiling/-t0_00000005_000005_000015"
    assert report["train"]["missing"] == {"clips": 1, "of": 18, "first": [gone]}
    assert report["val"]["missing"] == {"clips": 0, "of": 6, "first": []}
    assert "1 of 18" in done.stdout and f"train: missing: {gone}" in done.stderr
    shutil.rmtree(root / "videos/val/abseiling")
    done = run(*common, "-")  # 2 of 6 are more than data.max_missing allows: reported first, then refused
    report = json.loads(done.stdout)
    assert report["val"]["missing"]["clips"] == 2 and len(report["val"]["missing"]["first"]) == 2
    assert report["train"]["files"] == 17 and report["val"]["files"] == 4
    assert done.returncode == 3
    error, fix = done.stderr.splitlines()[-2:]
    assert error.startswith(f"error: {root}/validate.csv: 2 of 6 videos are missing, more than data.max_missing = 0.2 allows")
    assert fix.lstrip().startswith("fix: complete the copy")


def test_a_missing_video_of_many_segments_is_named_once(tmp_path: Path) -> None:
    root = trees.epic100(tmp_path / "set", clips=3)
    (root / "EPIC-KITCHENS/P02/videos/P02_101.MP4").unlink()
    with pytest.raises(DataError, match=r"3 of 6 videos are missing"):
        check("epic100", overrides=[f"data.root={root}"], json=str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())["train"]["missing"]
    assert (found["clips"], found["of"]) == (3, 6)
    assert [Path(name).name for name in found["first"]] == ["P02_101"]


def test_overrides_are_checked() -> None:
    with pytest.raises(RecipeError, match=r"unknown key data\.rot"):
        check("csv", overrides=["data.rot=x"], json=None)
    with pytest.raises(RecipeError, match="no recipe of that name"):
        check("foldr", overrides=[], json=None)


def test_ctrl_c_while_clips_are_written_leaves_neither_files_nor_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dtkd_edge", "data", "synth", str(tmp_path / "set"), "--clips", "20000", "--size", "64"]
    restore = (
        "import signal, os, sys; signal.signal(signal.SIGINT, signal.default_int_handler); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", restore, *command], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".set.*/videos/train/*.mp4")) and time.monotonic() < deadline:
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert [p.name for p in tmp_path.iterdir()] == [".set.lock"]
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
