"""Events posted to a real server on loopback: one that works, hangs, trickles, refuses, fails and redirects."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from deploy_cases import until

import dtkd_edge
from dtkd_edge.deploy import webhook as module
from dtkd_edge.deploy.camera import Grabber
from dtkd_edge.deploy.live import Live, Settings
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.smoothing import Event
from dtkd_edge.deploy.sources import open_source
from dtkd_edge.deploy.webhook import Webhook
from dtkd_edge.errors import UsageError


class Receiver(ThreadingHTTPServer):
    """mode: a status to answer with, 'hang' or 'trickle'."""

    daemon_threads = True

    def __init__(self, mode: int | str = 204, location: str = "") -> None:
        self.mode, self.location = mode, location
        self.posts: list[dict[str, Any]] = []
        self.free = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/events?key=s3cret"

    def handle_error(self, *_: Any) -> None: ...


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        post = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Content-Type"] == "application/json" and self.path == "/events?key=s3cret"
        self.server.posts.append(post)
        if self.server.mode == "hang":
            self.server.free.wait(30)
        elif self.server.mode == "trickle":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            while not self.server.free.wait(0.1):
                self.wfile.write(b"x")
        else:
            self.send_response(int(self.server.mode))
            if self.server.location:
                self.send_header("Location", self.server.location)
            self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def receiving(mode: int | str = 204, location: str = "") -> Iterator[Receiver]:
    server = Receiver(mode, location)
    try:
        yield server
    finally:
        server.free.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once. A post has time enough on a busy machine; where one is to be late, the test says so."""
    for name, value in (("TIMEOUT_S", 30.0), ("PAUSE_S", 0.05), ("FINISH_S", 30.0)):
        monkeypatch.setattr(module, name, value)


def live(number: int) -> Live:
    began = Event(f"label {number}", float(number), None, 0.9, "action", wall=1.7e9)
    return Live(number, 0.0, began.label, 0.9, None, 0.0, 0.0, begins=(began,))  # type: ignore[arg-type]


@contextmanager
def posting(url: str, **options: Any) -> Iterator[Webhook]:
    hook = Webhook(url, **options)
    hook.start()
    try:
        yield hook
    finally:
        hook.stop()


def test_what_a_receiver_gets(onnx_artifact: Path) -> None:
    with receiving() as server, dtkd_edge.load(onnx_artifact, device="cpu", threads=1) as classifier:
        with posting(server.url) as hook:
            hook.about = lambda: {"source": "pattern", "model": "tiny"}
            settings = Settings(clip_seconds=0.4, threshold=0.0, release=0.0)
            pipeline = Pipeline(classifier, Grabber(open_source("pattern")), settings)
            pipeline.listeners.append(hook)
            pipeline.start()
            assert until(lambda: hook.sent >= 1 and pipeline.inferences.count > 5)
            pipeline.stop()
        first, last = server.posts[0], server.posts[-1]
        assert first["phase"] == "start" and first["end"] is None and last["phase"] == "end" and last["end"] > last["start"]
        assert first["label"] in classifier.labels["action"] and first["source"] == "pattern" and first["model"] == "tiny"
        assert first["time"].endswith("+00:00") and len({post["id"] for post in server.posts}) == len(server.posts)
        assert hook.counts() == {"sent": len(server.posts), "failed": 0, "dropped": 0, "waiting": 0}


@pytest.mark.parametrize("mode", ["hang", "trickle"])
def test_a_server_that_hangs_blocks_nobody(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TRIES", 1), ("QUEUE", 5), ("TIMEOUT_S", 1.0)):
        monkeypatch.setattr(module, name, value)
    with receiving(mode) as server:
        with posting(server.url) as hook:
            hook(live(0))
            assert until(lambda: server.posts)
            for number in range(1, 40):
                hook(live(number))
            assert hook.dropped > 20 and hook.counts()["waiting"] <= 5
            assert until(lambda: hook.failed >= 1)  # the post that trickles is over too
            monkeypatch.setattr(module, "TIMEOUT_S", 30.0)
            server.mode = 200
            server.free.set()
            assert until(lambda: hook.sent >= 1)
        labels = [post["label"] for post in server.posts]
        assert labels[-1] == "label 39" and hook.sent + hook.failed + hook.dropped == 40  # the newest survive, all are counted


def test_a_server_that_fails_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    with receiving(500) as server, posting(server.url) as hook:
        hook(live(1))
        assert until(lambda: hook.failed == 1)
        assert len(server.posts) == module.TRIES and len({post["id"] for post in server.posts}) == 1
        hook(live(2))
        assert until(lambda: hook.failed == 2)
        server.mode = 200
        hook(live(3))
        assert until(lambda: hook.sent == 1)
    said = capsys.readouterr().err
    assert said.count("answered 500") == 1 and said.count("works again") == 1 and "1 posted, 2 failed, 0 dropped" in said
    assert "s3cret" not in said


def test_an_address_of_other_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def take(handler: Handler) -> None:
        seen.append(handler.path)
        handler.send_response(200)
        handler.end_headers()

    monkeypatch.setattr(Handler, "do_POST", take)
    with receiving() as server, posting(server.url.replace("/events", "/événement%20a b".replace(" ", "+"))) as hook:
        hook(live(1))
        assert until(lambda: hook.sent == 1)
    assert seen == ["/%C3%A9v%C3%A9nement%20a+b?key=s3cret"]


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with receiving() as server:
        url = server.url
    with posting(url) as hook:
        hook(live(1))
        assert until(lambda: hook.failed == 1)
    assert "connection refused" in capsys.readouterr().err


def test_a_redirect_is_not_followed(capsys: pytest.CaptureFixture[str]) -> None:
    with receiving() as other, receiving(307, other.url) as server:
        with posting(server.url) as hook:
            hook(live(1))
            assert until(lambda: hook.failed == 1)
        assert server.posts and not other.posts
    assert "answered 307, a redirect, which is not followed" in capsys.readouterr().err


def test_the_end_waits_a_little_and_not_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FINISH_S", 1.0)
    with receiving("hang") as server:
        with posting(server.url) as hook:
            hook(live(1))
            hook(live(2))
            assert until(lambda: server.posts)
        assert hook.dropped == 1 and server.posts[-1]["label"] == "label 1"  # stop() returned while the server still hangs


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://192.0.2.7/x", "192.0.2.7 is not this machine"), ("http://localhost.evil.example/", "is not this machine"),
        ("ftp://127.0.0.1/x", "not an http address"), ("127.0.0.1:80", "not an http address"),
        ("http://127.0.0.1:99999/", "--webhook http"), ("http://a:b@127.0.0.1/", "password"),
        ("http://127.0.0.1/a b", "not an http address"),
    ],
)  # fmt: skip
def test_other_hosts_only_when_named(url: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Webhook(url)
    assert words in caught.value.message and caught.value.hint


def test_hosts_that_are_named() -> None:
    assert Webhook("https://Hook.example:8443/x", hosts=["hook.example"]).name == "https://Hook.example:8443"
    assert Webhook("http://[::1]:9000").name == "http://[::1]:9000"
    with pytest.raises(UsageError, match=r"--webhook-host other\.example"):
        Webhook("https://other.example", hosts=["hook.example"])
