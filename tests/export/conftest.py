"""A finished run over real video files, shared by this room's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_runs import CLASSES, write_run, write_video

from dtkd_edge.export import clips, verify


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _short_timing() -> None:
    """No test here looks at how fast an artefact is; a verdict's latencies are real but short."""
    verify.SECONDS = 0.05


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/{train,val}/class/clip.mp4"""
    root = tmp_path_factory.mktemp("videos")
    for split, count in (("train", clips.FEWEST), ("val", 6)):
        for i in range(count):
            write_video(root / split / CLASSES[i % 2] / f"{i}.mp4", seed=i + (100 if split == "val" else 0))
    return root


@pytest.fixture(scope="session")
def run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "toy", videos)


@pytest.fixture(scope="session")
def causal(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "causal", videos, causal=True)
