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
