"""The web view: a real Chromium on a real server, and the guests that it must survive."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_cases import LABELS, to_y4m, until, write_colours, write_film, write_mp4

import dtkd_edge
from dtkd_edge.deploy.camera import Grabber
from dtkd_edge.deploy.guard import Guard
from dtkd_edge.deploy.live import Settings
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.server import MAX_MESSAGE, MAX_MESSAGES_PER_S, WebView, to_jpeg
from dtkd_edge.deploy.session import Session
from dtkd_edge.deploy.sources import SourceOptions, open_source
from dtkd_edge.deploy.sources.browser import decode_jpeg
from dtkd_edge.deploy.webhook import Webhook
from dtkd_edge.errors import UsageError
from dtkd_edge.video import Video

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
]  # fmt: skip
COLOURS = """() => {
  const canvas = document.getElementById("picture");
  return new Set(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size;
}"""
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@contextmanager
def serving(
    artifact: Path,
    source: str = "pattern",
    *,
    host: str = "127.0.0.1",
    others: tuple[str, ...] = (),
    artifacts: list[Path] | None = None,
    **settings: Any,
) -> Iterator[WebView]:
    options = SourceOptions(width=160, height=120, loop=True)
    chosen = Settings(**{"clip_seconds": 0.4, "threshold": 0.0, "release": 0.0, **settings})
    with dtkd_edge.load(artifact, device="cpu", threads=1) as classifier:
        pipeline = Pipeline(classifier, Grabber(open_source(source, options)), chosen)
        pipeline.start()
        session = Session(pipeline, sources=[source, *others], artifacts=artifacts, options=options, device="cpu")
        web = WebView(session, host, 0)
        web.start()
        try:
            yield web
        finally:
            web.stop()
            session.stop()


def get(url: str, **headers: str) -> tuple[int, str, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def test_pages_health_and_metrics(onnx_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(onnx_artifact) as web:
        status, body, headers = get(web.url)
        assert status == 200 and "<title>dtkd-edge" in body
        assert "default-src 'none'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
        assert get(web.url + "app.js")[0] == 200 and get(web.url + "style.css")[0] == 200
        for path in ("../server.py", "%2e%2e/server.py", "web/app.js", "etc/passwd", "manifest.json"):
            assert get(web.url + path)[0] == 404
        assert until(lambda: web.pipeline.inferences.count > 3)
        status, body, _ = get(web.url + "health")
        assert status == 200 and json.loads(body)["status"] == "live"
        web.webhook = Webhook("http://127.0.0.1:9/")
        metrics = get(web.url + "metrics")[1]
        assert "dtkd_edge_webhook_dropped_total 0\n" in metrics and "dtkd_edge_stalled_seconds " in metrics
        for line in metrics.splitlines():
            assert re.fullmatch(r'# (HELP|TYPE) .+|[a-z_]+(\{quantile="[\d.]+"\})? [\d.e+-]+', line), line
        assert float(re.search(r"^dtkd_edge_label_age_seconds_count (\d+)", metrics, re.M)[1]) > 3
        monkeypatch.setattr("dtkd_edge.deploy.server.STALLED_S", -1.0)  # as if a thread had not come round for long
        status, body, _ = get(web.url + "health")
        assert status == 503 and json.loads(body)["status"] == "stuck"


def test_foreign_pages_and_names_are_refused(onnx_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from websockets.sync.client import connect

    with serving(onnx_artifact) as web:
        assert get(web.url, Host="evil.example")[0] == 403  # DNS rebinding
        assert get(web.url, Origin="http://evil.example")[0] == 403
        address = web.url.replace("http", "ws") + "ws"
        with pytest.raises(Exception, match="403"):
            connect(address, origin="http://evil.example")
        with connect(address, origin=web.url.rstrip("/")) as socket:
            assert json.loads(socket.recv())["type"] == "hello"
        assert web.refused == 3
    said = capsys.readouterr().err
    assert said.count("foreign origin 'http://evil.example'") == 2 and "host 'evil.example' is not this machine" in said


def test_another_address_needs_the_token(onnx_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    with serving(onnx_artifact, host="0.0.0.0") as web:
        assert web.token and web.token in web.url
        base = f"http://127.0.0.1:{web.port}/"
        assert get(base)[0] == 403 and get(base + "?token=wrong")[0] == 403 and get(base + "metrics")[0] == 403
        assert get(base + "health")[0] == 200
        status, _, headers = get(base + f"?token={web.token}")
        assert status == 200
        cookie = headers["set-cookie"].partition(";")[0]
        assert "HttpOnly" in headers["set-cookie"] and get(base + "app.js", Cookie=cookie)[0] == 200
        socket = base.replace("http", "ws") + "ws"
        for query in ("", "?token=wrong"):
            with pytest.raises(InvalidStatus, match="403"):
                connect(socket + query)
        with connect(f"{socket}?token={web.token}") as opened:
            assert json.loads(opened.recv())["type"] == "hello"
        said = capsys.readouterr().err
        assert said.count("wrong or missing token") == 5 and web.token not in said


def test_guard_knows_its_own_names() -> None:
    guard = Guard(None)
    for host in ("localhost:8080", "127.0.0.1:8080", "[::1]:8080", "127.0.0.1"):
        assert guard.refusal({"host": host, "origin": f"http://{host}"}, None, None) is None
    for headers in ({}, {"host": "localhost.evil.example"}, {"host": "localhost:1", "origin": "null"}, {"host": "10.0.0.1"}):
        assert guard.refusal(headers, None, None)
    assert Guard("a").refusal({"host": "x"}, None, "ä") and Guard("a").refusal({"host": "x"}, "a", None) is None


def test_a_port_that_is_taken(onnx_artifact: Path) -> None:
    with serving(onnx_artifact) as web, pytest.raises(UsageError, match=f"--port {web.port}"):
        WebView(web.session, "127.0.0.1", web.port).start()


def test_many_viewers_one_inference_and_slow_ones_are_dropped(onnx_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty pages are sent the same pictures; one that never reads loses its connection and delays nobody."""
    import socket as sockets

    from websockets.asyncio.client import connect

    from dtkd_edge.deploy import server

    monkeypatch.setattr(server, "SLOW_S", 3.0)  # a busy machine keeps those who read waiting too

    async def watch(url: str) -> int:
        async with connect(url, max_size=None) as socket:
            assert not socket.protocol.extensions  # JPEGs deflated again, for each viewer, would take cores
            kinds = [isinstance(await asyncio.wait_for(socket.recv(), 60), bytes) for _ in range(30)]
            return sum(kinds)

    async def all_of_them(url: str) -> list[int]:
        return list(await asyncio.gather(*[watch(url) for _ in range(20)]))

    with serving(onnx_artifact) as web:
        monkeypatch.setattr(server, "to_jpeg", lambda image: bytes(300_000))  # fills the buffers of who does not read
        stuck = sockets.create_connection(("127.0.0.1", web.port))
        stuck.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        stuck.sendall(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        pictures = asyncio.run(all_of_them(web.url.replace("http", "ws") + "ws"))
        assert min(pictures) >= 5
        assert web.pipeline.inferences.count <= web.pipeline.grabber.grabbed
        assert until(lambda: web.slow == 1 and not web.viewers)
        stuck.close()


def test_garbage_floods_and_huge_messages(onnx_artifact: Path) -> None:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    with serving(onnx_artifact, source="browser") as web:
        address = web.url.replace("http", "ws") + "ws"
        with connect(address) as socket:
            for data in (b"", b"x", bytes(8) + b"no jpeg", "text", "{" * 1000, bytes(8) + to_jpeg(np.zeros((8, 8, 3), np.uint8))):
                socket.send(data)
            assert until(lambda: web.pipeline.grabber.source.refused >= 1)
            socket.send(bytes(8) + to_jpeg(np.zeros((48, 64, 3), np.uint8)))  # and it still works
            assert until(lambda: web.pipeline.grabber.grabbed == 1)
        with connect(address, max_size=None) as socket, pytest.raises(ConnectionClosed):
            socket.send(bytes(MAX_MESSAGE + 1))
            for _ in range(100):
                socket.recv(timeout=60)
        with connect(address) as socket, pytest.raises(ConnectionClosed):
            for _ in range(100 * MAX_MESSAGES_PER_S):  # ends when the server has had enough …
                socket.send("x")
            for _ in range(1000):  # … or its goodbye lies behind what it had sent before
                socket.recv(timeout=60)
        assert until(lambda: not web.viewers)
        assert get(web.url + "health")[0] == 200


def test_a_huge_size_in_a_small_file_is_refused() -> None:
    """Pillow has an exception of its own for it, which must not end the run."""
    good = bytearray(to_jpeg(np.zeros((48, 64, 3), np.uint8)))
    at = good.index(b"\xff\xc0") + 5  # the frame header: height and width follow marker, length and depth
    good[at : at + 4] = b"\xfd\xe8\xfd\xe8"
    assert decode_jpeg(bytes(good)) is None


def test_a_clock_that_is_no_number_does_not_reach_the_pages(onnx_artifact: Path) -> None:
    from websockets.sync.client import connect

    with serving(onnx_artifact, source="browser") as web, connect(web.url.replace("http", "ws") + "ws") as socket:
        for stamp in (float("nan"), float("inf")):
            socket.send(struct.pack("<d", stamp) + to_jpeg(np.zeros((48, 64, 3), np.uint8)))
            assert until(lambda: web.pipeline.grabber.latest() is not None)
            assert web.pipeline.grabber.latest().stamp == 0.0


def test_counters_keep_their_last_digits(onnx_artifact: Path) -> None:
    with serving(onnx_artifact) as web:
        web.pipeline.grabber.reconnects = 12_345_678  # a rate is a difference of two of these
        assert "dtkd_edge_reconnects_total 12345678\n" in get(web.url + "metrics")[1]


def test_decode_jpeg_refuses_what_is_none() -> None:
    good = to_jpeg(np.zeros((48, 64, 3), np.uint8))
    assert decode_jpeg(good).shape == (48, 64, 3)
    huge = to_jpeg(np.zeros((1200, 2000, 3), np.uint8), width=4000)
    for bad in (b"", b"GIF89a", good[: len(good) // 2], huge, to_jpeg(np.zeros((8, 8, 3), np.uint8))):
        assert decode_jpeg(bad) is None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.mark.slow
def test_a_film_as_the_visitors_camera(tmp_path: Path) -> None:
    """Chromium's fake camera plays a real clip; the labels that belong to its scenes come and go on the page, as typed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is not installed")
    film = write_film(tmp_path / "film.mp4")
    camera, artifact = to_y4m(film, tmp_path / "film.y4m"), write_colours(tmp_path / "colours")
    flags = [*FLAGS, f"--use-file-for-fake-video-capture={camera}"]
    log, out = tmp_path / "events.jsonl", tmp_path / "out.mp4"
    options = ("--source", "browser", "--port", 0, "--clip-seconds", 0.4, "--smoothing", 0.2, "--events", log, "--record", out)
    with playwright.sync_playwright() as driver, run_demo(artifact, *options) as (process, url):
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        page = chromium.new_context(permissions=["camera"], viewport={"width": 390, "height": 844}).new_page()
        page.goto(url)
        page.locator("#camera").click()
        seen: list[str] = []

        def look() -> bool:
            label = page.locator("#label").inner_text()
            if label in ("red", "green", "blue") and seen[-1:] != [label]:
                seen.append(label)
            return len(seen) >= 5

        assert until(look), seen
        assert page.locator("#age").inner_text().endswith("fps")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        chromium.close()
    order = ["red", "green", "blue", "red", "green", "blue", "red"]
    assert any(seen == order[at : at + 5] for at in range(3)), seen  # every scene, in the film's order, and round again
    logged = [json.loads(line)["label"] for line in log.read_text().splitlines()]
    assert len(logged) >= 3 and logged[:5] == seen[: len(logged[:5])]
    picture = Video(out).read(np.array([5]))[0].astype(int)
    assert picture[:150, :200].mean() > 1.5 * picture[:150, 260:].mean()  # not mirrored: what is dark is on the right


@contextmanager
def run_demo(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as typed; yields it and the address that it prints, and ends it."""
    command = [sys.executable, "-m", "dtkd_edge", "demo", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if found := re.search(r"open (http\S+)", line):
                    break
            else:
                raise AssertionError(f"demo ended with {process.wait()}")
            reader = threading.Thread(target=process.stderr.read, daemon=True)  # a full pipe would stop it
            reader.start()
            try:
                yield process, found[1]
            finally:
                process.kill()
                reader.join(10)
        finally:
            process.kill()


@pytest.mark.slow
def test_two_heads_on_the_page(browser: Any, tmp_path: Path) -> None:
    """The label, the bars, the timeline and the events say the verb and the noun."""
    artifact = write_colours(tmp_path / "colours", heads=("verb", "noun"))
    film = write_film(tmp_path / "film.mp4")
    with serving(artifact, source=str(film), threshold=0.5, release=0.35, smoothing=0.1) as web:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(web.url)
        seen: set[str] = set()

        def look() -> bool:
            seen.add(page.locator("#label").inner_text())
            return {"red · warm", "green · cold", "blue · cold"} <= seen

        assert until(look), seen
        assert [heading.lower() for heading in page.locator("#heads h3").all_inner_texts()] == ["verb", "noun"]
        assert set(page.locator("#heads .row .name span:first-child").all_inner_texts()) == {
            "red",
            "green",
            "blue",
            "warm",
            "cold",
        }
        assert until(lambda: page.locator("#heads .row.on").count() == 2)
        tops = "() => [...document.querySelectorAll('.seg')].map((s) => [s.title, s.offsetTop])"

        def lanes() -> bool:
            top = dict(page.evaluate(tops))
            if not {"red", "green", "blue", "warm", "cold"} <= set(top):
                return False
            return bool(top["red"] == top["green"] == top["blue"] < top["warm"] == top["cold"])

        assert until(lanes), page.evaluate(tops)
        assert until(lambda: {"warmnoun", "redverb"} <= set(page.locator("#events .what").all_inner_texts()))
        # The film goes on: an event may end between the two.
        assert until(lambda: f"dtkd_edge_events_total {web.pipeline.events_ended}\n" in get(web.url + "metrics")[1])
        page.close()


@pytest.mark.parametrize("source", ["pattern", "file"])
def test_the_label_stands_on_the_page(source: str, onnx_artifact: Path, tmp_path: Path, browser: Any) -> None:
    spec = source if source == "pattern" else write_mp4(tmp_path / "clip.mp4", frames=60, size=(96, 64))
    options = ("--source", spec, "--port", 0, "--clip-seconds", 0.5, "--threshold", 0.05, "--webhook", "http://127.0.0.1:9/")
    with run_demo(onnx_artifact, *options) as (process, url):
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(url)
        assert until(lambda: page.locator("#label").inner_text() in LABELS)
        assert page.locator("#status-text").inner_text() == "live"
        assert "posted" in page.locator("#hook").inner_text()
        rows = page.locator(".row .name span:first-child").all_inner_texts()
        assert len(set(rows)) >= 5 and set(rows) <= set(LABELS)
        assert page.locator("#age").inner_text().endswith("fps")
        assert until(lambda: page.evaluate(COLOURS) > 10)  # a picture, not a blank canvas
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert problems == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert until(lambda: page.locator("#status-text").inner_text() == "not connected")
        page.close()


def test_the_visitors_own_camera(onnx_artifact: Path, browser: Any) -> None:
    with serving(onnx_artifact, source="browser") as web:
        context = browser.new_context(viewport={"width": 390, "height": 844}, permissions=["camera"])
        page = context.new_page()
        page.goto(web.url)
        page.locator("#camera").click()
        assert until(lambda: page.locator("#label").inner_text() in LABELS)
        assert until(lambda: web.pipeline.grabber.grabbed > 5)
        assert web.pipeline.live is not None and web.pipeline.live.stamp is not None
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        context.close()
