"""Fixtures for every room: the command in an empty folder, and the real data that lies beside some checkouts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from dtkd_edge import cli

# How long an example takes says nothing on a machine that others use too.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Tests that run side by side share the cores: a thread each, for torch here and in every command that a test starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so would every command that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Main = Callable[..., tuple[int, str, str]]


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


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """The command line within this process (torch loads once), in an empty folder: exit code, standard output, standard error."""
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dtkd-edge", *map(str, args)])
        capsys.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code
        return int(str(code or 0)), *capsys.readouterr()

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Of torch: more of them only get in each other's way with models as small as these."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real clips and weights that are not part of the repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared folder with real clips beside this checkout")
    return folder
