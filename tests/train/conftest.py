"""One small generated data set for every test of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
from train_cases import SMALL


@pytest.fixture(scope="session")
def motion_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("motion") / "set"


@pytest.fixture
def small(motion_root: Path) -> list[str]:
    """Overrides of the quickstart recipe."""
    return [f"data.root={motion_root}", *SMALL]


@pytest.fixture(scope="session")
def finished_teachers(motion_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of the quickstart recipe that give two teachers from files."""
    from dtkd_edge.train.command import train

    run = tmp_path_factory.mktemp("teachers") / "run"
    base = [f"data.root={motion_root}", *SMALL]
    train("quickstart", overrides=[*base, "phases=teachers"], out=run)
    return [
        *base,
        *[
            f"teachers.{name}.{key}"
            for name in ("cnn", "vit")
            for key in (f"weights={run}/teachers/{name}.safetensors", "train=null")
        ],
    ]
