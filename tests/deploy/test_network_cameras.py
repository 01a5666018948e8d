"""RTSP and UDP cameras in processes of their own, which are killed while somebody looks."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deploy_cases import until
from test_faults import demo

from dtkd_edge.deploy.camera import Grabber
from dtkd_edge.deploy.sources import av as av_sources
from dtkd_edge.deploy.sources import open_source


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(type=kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def camera(kind: str, port: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("network_camera.py")), kind, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if kind != "udp":
                assert process.stdout.readline() == f"{port}\n"  # it listens
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_an_rtsp_camera_that_is_killed_and_comes_back(onnx_artifact: Path, tmp_path: Path) -> None:
    """As typed: it is said once that the camera is lost and once that it is back; the label does not hold through the gap."""
    port, log = free_port(), tmp_path / "events.jsonl"
    said: list[str] = []
    with camera("rtsp", port) as first:
        process = demo(onnx_artifact, "--source", f"rtsp://me:s3cret@127.0.0.1:{port}/live", "--events", log)
        reader = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
        reader.start()
        try:
            assert until(lambda: any("%" in line for line in said)), said  # the first label
            first.send_signal(signal.SIGKILL)
            assert until(lambda: any("lost (" in line for line in said)), said
            assert until(lambda: log.read_text().count("\n") >= 1), said  # longer than the clip: its event has ended
            with camera("rtsp", port):
                assert until(lambda: any(": back after " in line for line in said)), said
                labels = len(said)
                assert until(lambda: any("%" in line for line in said[labels:])), said
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            reader.join(10)
            process.stdout.close()
            process.stderr.close()
    text = "".join(said)
    assert text.count("lost (") == text.count("back after") == 1 and "s3cret" not in text and "Traceback" not in text, text
    assert re.search(rf"rtsp://127\.0\.0\.1:{port}/live: lost \(.+\); trying", text)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(events) >= 2 and all(event["source"] == "127.0.0.1/live" for event in events)


@pytest.mark.slow
def test_an_rtsp_stream_with_damaged_packets_goes_on() -> None:
    port = free_port()
    with camera("damaged", port):
        grabber = Grabber(open_source(f"rtsp://127.0.0.1:{port}/live"), backoff=(0.1, 0.5))
        assert until(lambda: _opens(grabber))
        assert until(lambda: grabber.grabbed > 30) and grabber.error is None
        grabber.stop()


def _opens(grabber: Grabber) -> bool:
    try:
        grabber.start()
    except Exception:
        return False
    return True


@pytest.mark.slow
def test_a_udp_stream_that_stops_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av_sources, "READ_TIMEOUT_S", 1.0)
    port = free_port(socket.SOCK_DGRAM)
    grabber = Grabber(open_source(f"udp://127.0.0.1:{port}"), backoff=(0.1, 0.5))
    try:
        with camera("udp", port):
            assert until(lambda: _opens(grabber))
            assert until(lambda: grabber.grabbed > 10)
        assert until(lambda: grabber.state == "reconnecting")
        before = grabber.reconnects  # a busy machine may have kept it waiting for as long once already
        with camera("udp", port):
            assert until(lambda: grabber.reconnects > before and grabber.state == "live")
    finally:
        grabber.stop()
    assert grabber.latest().image.shape == (120, 160, 3)
