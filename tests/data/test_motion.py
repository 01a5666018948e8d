"""Generated sets as files."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

from dtkd_edge.data import motion
from dtkd_edge.data.catalogue import open_split
from dtkd_edge.errors import DataError, InputError, UsageError
from dtkd_edge.files import sha256
from dtkd_edge.recipe import DataConfig
from dtkd_edge.video import Video


def test_files_lists_and_description(tmp_path: Path) -> None:
    folder = motion.generate(tmp_path / "set", "motion", 16, 16, 48, 3)
    assert sorted(p.name for p in folder.iterdir()) == ["classes.txt", "motion.json", "train.csv", "val.csv", "videos"]
    assert len(list((folder / "videos/train").iterdir())) == 16
    assert json.loads((folder / "motion.json").read_text())["seed"] == 3
    clip = folder / "videos/val/000003.mp4"
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 48, 48)
        assert all(frame.key_frame for frame in container.decode(video=0))  # no ghosts of earlier frames
    frames, fps = motion.render("motion", 3, np.random.default_rng([3, 0, 1, 3]), 48)
    video = Video(clip)
    read = video.read(np.arange(len(video)))
    assert read.shape == frames.shape
    assert video.fps == pytest.approx(fps, rel=0.01)
    assert np.abs(read.astype(int) - frames).mean() < 12  # noise and colour go through the codec
    assert [p.name for p in tmp_path.iterdir()] in (["set"], [".set.lock", "set"], ["set", ".set.lock"])


def test_many_processes_write_what_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = motion.generate(tmp_path / "many", "order", 66, 16, 24, 0)
    monkeypatch.setattr(motion, "ALONE", 1000)
    one = motion.generate(tmp_path / "one", "order", 66, 16, 24, 0)
    files = sorted(p.relative_to(many) for p in many.rglob("*") if p.is_file())
    assert len(files) == 66 + 16 + 4
    assert all(sha256(many / p) == sha256(one / p) for p in files)


def test_a_set_that_is_there_is_left_alone(tmp_path: Path) -> None:
    folder = motion.generate(tmp_path / "set", "motion", 16, 16, 24, 0)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    motion.generate(folder, "motion", 16, 16, 24, 0)
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(DataError, match="another generated set: seed 0 \\(wanted 1\\)"):
        motion.generate(folder, "motion", 16, 16, 24, 1)


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="is no generated set"):
        motion.generate(tmp_path, "motion", 16, 16, 24, 0)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, *args: object) -> None:
        if path.name == "000007.mp4":
            raise KeyboardInterrupt
        path.write_bytes(b"")

    monkeypatch.setattr(motion, "write_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        motion.generate(tmp_path / "set", "motion", 16, 16, 24, 0)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def test_a_worker_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion.sys, "executable", "/bin/false")
    with pytest.raises(Exception, match="generating clips failed"):
        motion.generate(tmp_path / "set", "motion", 100, 40, 24, 0)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("size", [25, 22])
def test_sizes_that_h264_cannot_hold(tmp_path: Path, size: int) -> None:
    with pytest.raises(UsageError, match="even number"):
        motion.generate(tmp_path / "set", "motion", 16, 16, size, 0)


def test_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one of: motion, order"):
        motion.generate(tmp_path / "set", "dance", 16, 16, 24, 0)


def test_opened_without_a_root_it_lies_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTKD_EDGE_CACHE", str(tmp_path / "cache"))
    config = DataConfig.model_validate({"kind": "motion", "clips": 24, "val_clips": 16, "frame_size": 24})
    train, val = open_split(config, "train"), open_split(config, "val")
    assert (len(train), len(val)) == (24, 16)
    assert train.classes["action"][:2] == ["left", "right"]
    assert train[9].labels == {"action": 1}
    assert train[9].path.is_file()
    assert train[9].path.is_relative_to(tmp_path / "cache")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(InputError):
        motion.generate(blocker / "set", "motion", 16, 16, 24, 0)
