"""Network streams on loopback: a camera that goes away and comes back, changes its picture's size, or sends rubbish."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_cases import until, write_mp4

import dtkd_edge
from dtkd_edge.deploy.camera import Grabber
from dtkd_edge.deploy.live import Settings
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.server import to_jpeg
from dtkd_edge.deploy.sources import SourceOptions, open_source
from dtkd_edge.deploy.sources import av as av_sources
from dtkd_edge.deploy.sources.pattern import draw


class Camera:
    """An MJPEG camera over HTTP, as many IP cameras are one."""

    def __init__(self) -> None:
        self.size = (160, 120)
        self.port = 0
        self.rubbish = self.quiet = False
        self.readers = self.sent = 0
        self._server: ThreadingHTTPServer | None = None
        self._on = threading.Event()

    def start(self) -> None:
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                number = 0
                camera.readers += 1
                try:
                    while camera._on.is_set():
                        if camera.quiet:
                            time.sleep(0.05)
                            continue
                        jpeg = bytes(3000) if camera.rubbish and number % 2 else to_jpeg(draw(number / 25, *camera.size))
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                        self.wfile.write(head.encode() + jpeg + b"\r\n")
                        number += 1
                        camera.sent += 1
                        time.sleep(0.04)
                except OSError:
                    pass
                camera.readers -= 1
                self.close_connection = True

            def log_message(self, *_: Any) -> None: ...

        self._on.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._on.clear()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def grabbing(camera: Camera) -> Iterator[Grabber]:
    camera.start()
    grabber = Grabber(open_source(f"http://127.0.0.1:{camera.port}/video"), backoff=(0.1, 0.5))
    grabber.start()
    try:
        yield grabber
    finally:
        grabber.stop()
        camera.stop()


def test_a_camera_that_goes_away_comes_back(onnx_artifact: Path) -> None:
    camera = Camera()
    camera.start()
    with dtkd_edge.load(onnx_artifact, device="cpu", threads=1) as classifier:
        grabber = Grabber(open_source(f"http://127.0.0.1:{camera.port}/video"), backoff=(0.1, 0.5))
        pipeline = Pipeline(classifier, grabber, Settings(clip_seconds=0.4, threshold=0.0, release=0.0))
        pipeline.start()
        assert until(lambda: pipeline.inferences.count > 3)
        camera.stop()
        assert until(lambda: grabber.state == "reconnecting")
        time.sleep(1.2)  # longer than the clip: what was before must be forgotten
        labelled = pipeline.inferences.count
        camera.start()
        assert until(lambda: grabber.state == "live" and pipeline.inferences.count > labelled + 3)
        assert grabber.reconnects == 1 and pipeline.error is None
        assert pipeline.events_ended >= 1  # the label did not hold through the gap
        pipeline.stop()
    camera.stop()


def test_a_camera_is_free_once_it_is_no_longer_read() -> None:
    camera = Camera()
    with grabbing(camera) as grabber:
        assert until(lambda: grabber.grabbed > 2) and camera.readers == 1
        grabber.stop()
        assert until(lambda: camera.readers == 0)


def test_the_picture_changes_its_size() -> None:
    camera = Camera()
    with grabbing(camera) as grabber:
        assert until(lambda: grabber.grabbed > 3)
        camera.size = (96, 64)
        assert until(lambda: (frame := grabber.latest()) is not None and frame.image.shape[:2] != (120, 160))


def test_damaged_pictures_are_passed_over() -> None:
    camera = Camera()
    camera.rubbish = True
    with grabbing(camera) as grabber:
        assert until(lambda: grabber.grabbed > 10)
        assert grabber.error is None


def test_a_camera_that_says_nothing_more_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection stays open and no byte comes, as when a cable is pulled."""
    monkeypatch.setattr(av_sources, "READ_TIMEOUT_S", 0.5)
    camera = Camera()
    with grabbing(camera) as grabber:
        assert until(lambda: grabber.grabbed > 3)
        camera.quiet = True
        assert until(lambda: grabber.state == "reconnecting")
        before = grabber.reconnects  # a busy machine may have kept the camera waiting for as long once already
        camera.quiet = False
        assert until(lambda: grabber.reconnects > before and grabber.state == "live")


def test_a_corrupted_file_gives_what_it_has(tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=60, size=(160, 120))
    data = bytearray(video.read_bytes())
    start = data.index(b"mdat") + 2000
    rng = np.random.default_rng(0)
    data[start : start + 3000] = rng.integers(0, 256, 3000, dtype=np.uint8).tobytes()
    video.write_bytes(data)
    grabber = Grabber(open_source(str(video)))
    grabber.start()
    assert until(lambda: not grabber.running)
    assert grabber.grabbed > 5
    grabber.stop()


def test_a_file_that_broke_off_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import av

    video = write_mp4(tmp_path / "clip.mp4", frames=30, size=(160, 120))
    with av.open(str(video)) as file:
        places = [packet.pos for packet in file.demux(video=0) if packet.pos]
    data = bytearray(video.read_bytes())
    data[places[20] : places[20] + 4] = b"\xff\xff\xff\xff"  # the length of what the packet holds
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    for path, words in ((broken, f"--source {broken}: damaged: "), (video, "")):
        source = open_source(str(path), SourceOptions(fast=True, loop=True))
        source.open()
        for _ in range(70):
            assert source.read() is not None
        source.close()
        said = capsys.readouterr().err
        assert said.startswith(words) and said.count("\n") == bool(words)


def test_a_turned_phone_video_stands_upright(shared: Path) -> None:
    from dtkd_edge.video import Video

    path = shared / "data" / "fixtures" / "video_90.mov"
    if not path.is_file():
        pytest.skip("no video_90.mov beside this checkout")
    source = open_source(str(path))
    source.open()
    read = source.read()
    source.close()
    assert read is not None
    np.testing.assert_array_equal(read[0], Video(path).read(np.array([0]))[0])
