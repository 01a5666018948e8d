"""`dtkd-edge data check` and `data synth`, as a user calls them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtkd_edge.data.command import check
from dtkd_edge.errors import DataError, RecipeError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dtkd_edge", "data", *arguments], capture_output=True, text=True, check=False)


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
    override = [f"data.root={broken_folder}", "data.max_broken=1"]
    result = check("folder", overrides=override, json=None)
    names = {Path(p).name for p in result["train"]["broken"]}
    assert names == {"empty.mp4", "truncated.mp4", "text.mp4", "gone.mp4", "zero.mp4"}
    assert all("\n" not in why and why for why in result["train"]["broken"].values())
    assert len(result["on_both_sides"]) == 8
    assert [sorted(Path(p).name for p in same) for same in result["train"]["copies"]] == [["again.mp4", "b0.mp4"]]
    out, err = capfd.readouterr()
    assert "broken files" in out
    assert "empty.mp4: the file is empty" in err
    with pytest.raises(DataError, match=r"10 of 27 files are broken, more than data\.max_broken = 0\.05"):
        check("folder", overrides=override[:1], json=None)


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
