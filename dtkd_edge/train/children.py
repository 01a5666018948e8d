"""Trainings in processes of their own, which never outlive the one that started them.

`python -m dtkd_edge.train.children PID ARGUMENTS…` is `dtkd-edge ARGUMENTS…` that ends when the process PID does.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

PATIENCE = 20.0  # seconds that a training has to end in after it was asked to


class Children:
    """The processes that run now; leaving the block ends those that still do."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._guard = threading.Lock()
        self._ended = False

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def run(self, arguments: list[str], environment: dict[str, str]) -> tuple[int, str]:
        """`dtkd-edge ARGUMENTS…` to its end: exit code, and what it said on standard error."""
        command = [sys.executable, "-m", "dtkd_edge.train.children", str(os.getpid()), *arguments]
        with self._guard:
            if self._ended:
                return 128 + signal.SIGTERM, "interrupted"
            child = subprocess.Popen(
                command, env=environment, text=True, errors="replace",
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
            self._running.add(child)
        try:
            _, said = child.communicate()
        finally:
            with self._guard:
                self._running.discard(child)
        return child.returncode, said

    def end(self) -> None:
        """Ask all of them to end, and let none begin."""
        with self._guard:
            self._ended = True
            running = list(self._running)
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM leave the block as an exception, with exit code 143, and a second one end the process at once; in a thread
    other than the main one nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def end_with(parent: int) -> None:
    """SIGTERM for this process when its parent ends, even by SIGKILL, where the system can (Linux: prctl)."""
    if sys.platform.startswith("linux"):
        set_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(128 + signal.SIGTERM)


def main() -> None:
    end_with(int(sys.argv.pop(1)))
    with sigterm_unwinds():
        runpy.run_module("dtkd_edge", run_name="__main__")  # this room may not import the command line


if __name__ == "__main__":
    main()
