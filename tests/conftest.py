"""Fixtures for every room: the command in an empty folder, and the real data that lies beside some checkouts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing on a machine that others use too.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

ROOT = Path(__file__).resolve().parents[1]

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so would every command that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def dtkd_edge(tmp_path: Path) -> Run:
    """Run `dtkd-edge ARGS…` as a user does: a process of its own, in an empty folder; `env` adds variables."""
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(
        *args: object, env: dict[str, str] | None = None, cwd: Path = empty, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dtkd_edge", *map(str, args)]
        environment = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1", **(env or {})}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real clips and weights that are not part of the repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared folder with real clips beside this checkout")
    return folder
