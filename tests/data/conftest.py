"""Small real video files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import settings
from made_videos import zero_frames

from dtkd_edge.data import motion
from dtkd_edge.data.catalogue import Catalogue, open_split
from dtkd_edge.recipe import DataConfig

settings.register_profile("no-deadline", deadline=None)  # machines that run tests are busy
settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def motion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return motion.generate(tmp_path_factory.mktemp("motion") / "set", "motion", 40, 16, 48, 0)


@pytest.fixture
def motion_config(motion_folder: Path) -> DataConfig:
    values = {"kind": "motion", "root": motion_folder, "clips": 40, "val_clips": 16, "frame_size": 48}
    return DataConfig.model_validate(values)


@pytest.fixture
def clips(motion_config: DataConfig) -> Catalogue:
    return open_split(motion_config, "train")


@pytest.fixture
def broken_folder(motion_folder: Path, tmp_path: Path) -> Path:
    """Two classes of good clips; five files that do not decode among those of class a."""
    for first, name in ((0, "a"), (4, "b")):
        (tmp_path / name).mkdir()
        for i in range(4):
            shutil.copy(motion_folder / f"videos/train/{first + i:06d}.mp4", tmp_path / name / f"{name}{i}.mp4")
    good = (tmp_path / "a/a0.mp4").read_bytes()
    (tmp_path / "a/empty.mp4").write_bytes(b"")
    (tmp_path / "a/truncated.mp4").write_bytes(good[: len(good) // 3])
    (tmp_path / "a/text.mp4").write_text("this is no video\n" * 100)
    (tmp_path / "a/gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    zero_frames(tmp_path / "a/zero.mp4")
    return tmp_path
