"""A service manager's end of the socket: real datagrams from the command as typed, and from a pipeline that hangs."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy_cases import until

import dtkd_edge
from dtkd_edge.deploy.camera import Grabber
from dtkd_edge.deploy.live import Settings
from dtkd_edge.deploy.notify import Notifier
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.session import Session
from dtkd_edge.deploy.sources import open_source

UNIT = Path(__file__).parents[2] / "deploy" / "jetson" / "dtkd-edge.service"


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@dtkd-edge-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0"))
        listener.settimeout(60)
        yield name, listener


def lines(listener: socket.socket) -> list[str]:
    return listener.recv(4096).decode().split("\n")


def test_ready_alive_stopping(manager: tuple[str, socket.socket], onnx_artifact: Path) -> None:
    name, listener = manager
    command = [sys.executable, "-m", "dtkd_edge", "demo", str(onnx_artifact), "--source", "pattern", "--view", "none"]
    env = {**os.environ, "NOTIFY_SOCKET": name, "WATCHDOG_USEC": "600000"}
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        assert lines(listener)[0] == "READY=1"
        for _ in range(3):
            first, status = lines(listener)
            assert first == "WATCHDOG=1" and status.startswith("STATUS=live, ")
        process.send_signal(signal.SIGTERM)
        while (said := lines(listener))[0] == "WATCHDOG=1":
            pass
        assert said == ["STOPPING=1"] and process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("what", ["inference", "grabber"])
def test_what_hangs_is_not_alive(
    what: str, onnx_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "1600000")
    go_on = threading.Event()
    go_on.set()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
        dtkd_edge.load(onnx_artifact, device="cpu", threads=1) as classifier,
    ):
        listener.bind(str(tmp_path / "notify"))
        pipeline = Pipeline(classifier, Grabber(open_source("pattern")), Settings(clip_seconds=0.4))
        predict, read = classifier.predict_live, pipeline.grabber.source.read
        monkeypatch.setattr(classifier, "predict_live", lambda clip: (what != "inference" or go_on.wait(60), predict(clip))[1])
        monkeypatch.setattr(pipeline.grabber.source, "read", lambda: (what != "grabber" or go_on.wait(60), read())[1])
        pipeline.start()
        notifier = Notifier(Session(pipeline))
        notifier.start()
        listener.settimeout(60)
        assert lines(listener)[0] == "READY=1" and lines(listener)[0] == "WATCHDOG=1"
        go_on.clear()
        assert until(lambda: pipeline.stalled() > 1.7)
        assert pipeline.slowest() == what
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:  # what was said before it was noticed
                lines(listener)
        time.sleep(1.7)
        with pytest.raises(BlockingIOError):
            lines(listener)
        go_on.set()
        listener.settimeout(60)
        assert lines(listener)[0] == "WATCHDOG=1"
        notifier.stop()
        pipeline.stop()
    assert f"the {what} thread has not turned" in capsys.readouterr().err


def test_no_manager_no_word(onnx_artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with dtkd_edge.load(onnx_artifact, device="cpu", threads=1) as classifier:
        pipeline = Pipeline(classifier, Grabber(open_source("pattern")))
        before = threading.active_count()
        quiet = Notifier(Session(pipeline))
        quiet.start()
        assert threading.active_count() == before
        quiet.stop()
        monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/socket")  # a manager that went away ends nothing
        monkeypatch.setenv("WATCHDOG_PID", "1")
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        lost = Notifier(Session(pipeline))
        lost.start()
        lost.stop()
        assert lost.limit is None  # the watchdog of another process
    assert capsys.readouterr().err.count("$NOTIFY_SOCKET /nowhere/socket") == 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    text = UNIT.read_text()
    assert "\nType=notify\n" in text and "\nWatchdogSec=" in text
    unit = tmp_path / "dtkd-edge.service"  # the program is not installed here
    unit.write_text(text.replace("/opt/dtkd-edge/lib/dtkd-edge-start", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    about = [line for line in (done.stdout + done.stderr).splitlines() if "dtkd-edge" in line]
    assert about == [] and done.returncode == 0, done.stderr
