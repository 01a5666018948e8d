"""`--webhook`: events posted as JSON to a server of one's own, from a thread that the pipeline never waits for."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlsplit

from dtkd_edge.console import say
from dtkd_edge.deploy.guard import is_loopback
from dtkd_edge.deploy.live import Live
from dtkd_edge.errors import UsageError

QUEUE = 100  # events that may wait; when more come, the oldest go
TIMEOUT_S = 5.0  # for one post as a whole, however slowly the other side answers
TRIES, PAUSE_S = 3, 1.0  # a post that failed is tried again after this long, then after twice that
FINISH_S = 5.0  # what waits at the end may take this long


class Webhook:
    """A listener of the pipeline: one POST when a label comes on (`"phase": "start"`) and one when it goes (`"end"`).

    Only this machine, or a host named in `hosts`, is ever contacted: a redirect counts as a failure and is not followed, and
    proxies of the environment are not used. The `id` of a post that is tried again stays, so that a receiver can tell.
    """

    def __init__(self, url: str, *, hosts: list[str] | None = None) -> None:
        self.sent = self.failed = self.dropped = 0
        self.about: Callable[[], dict[str, str]] = dict  # what else goes into every post
        self._connect, self._path, self.name = _target(url, hosts or [])
        self._run_id, self._number = uuid.uuid4().hex[:12], 0
        self._waiting: deque[dict[str, Any]] = deque()
        self._news = threading.Condition()
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def __call__(self, live: Live) -> None:
        for phase, event in (*(("end", event) for event in live.ends), *(("start", event) for event in live.begins)):
            with self._news:
                if len(self._waiting) >= QUEUE:
                    self._waiting.popleft()
                    self.dropped += 1
                self._number += 1
                post = {"id": f"{self._run_id}-{self._number}", "phase": phase, **event.to_json(), **self.about()}
                self._waiting.append(post)
                self._news.notify_all()

    def counts(self) -> dict[str, int]:
        return {"sent": self.sent, "failed": self.failed, "dropped": self.dropped, "waiting": len(self._waiting)}

    def stop(self) -> None:
        """Post what waits, for at most FINISH_S; what is left then counts as dropped."""
        self._deadline = time.monotonic() + FINISH_S
        self._stopping.set()
        with self._news:
            self._news.notify_all()
        self._thread.join(FINISH_S + 1)
        with self._news:
            self.dropped += len(self._waiting)
            self._waiting.clear()
        say(f"webhook: {self.sent} posted, {self.failed} failed, {self.dropped} dropped")

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._stopping.is_set())
                if not self._waiting or time.monotonic() > self._deadline:
                    return
                post = self._waiting.popleft()
            self._deliver(json.dumps(post, ensure_ascii=False).encode())

    def _deliver(self, body: bytes) -> None:
        trouble = ""
        for attempt in range(TRIES):
            if attempt and self._stopping.wait(PAUSE_S * attempt):
                break  # at the end every event gets one try
            left = self._deadline - time.monotonic()
            trouble = self._post(body, min(TIMEOUT_S, max(left, 0.1)))
            if not trouble:
                break
        self.sent += not trouble
        self.failed += bool(trouble)
        if trouble != self._trouble:  # say when it begins, changes and ends; a log must not fill up
            self._trouble = trouble
            say(f"--webhook {self.name}: {trouble or 'works again'}")

    def _post(self, body: bytes, timeout: float) -> str:
        """One try. Returns what went wrong, or ''."""
        connection = self._connect(timeout)
        too_late = threading.Event()

        def cut() -> None:  # the socket's own time-out starts anew with every byte that trickles in
            too_late.set()
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(timeout, cut)
        timer.start()
        try:
            connection.request("POST", self._path, body, {"Content-Type": "application/json", "User-Agent": "dtkd-edge"})
            status = connection.getresponse().status
        except TimeoutError:
            too_late.set()
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not too_late.is_set():
                return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
        finally:
            timer.cancel()
            connection.close()
        if too_late.is_set():
            return f"no answer within {timeout:.0f} s"
        if 200 <= status < 300:
            return ""
        return f"answered {status}" + (", a redirect, which is not followed" if 300 <= status < 400 else "")


def _target(url: str, hosts: list[str]) -> tuple[Any, str, str]:
    """A maker of connections, the path to post to, and the address as messages name it (without a secret query)."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise UsageError(f"--webhook {url[:80]}: {error}", "like http://127.0.0.1:9000/events") from error
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() or ord(c) < 32 for c in url):
        raise UsageError(f"--webhook {url[:80]!r}: not an http address", "like http://127.0.0.1:9000/events")
    if parts.username or parts.password:
        raise UsageError("--webhook: a name or password in the address is not sent", "put a secret into the path or the query")
    if not is_loopback(host) and host not in [name.lower().rstrip(".") for name in hosts]:
        raise UsageError(f"--webhook: {host} is not this machine", f"if events may go there: --webhook-host {host}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe="/%?&=+:@!$'()*,;~-._[]")
    return lambda timeout: kind(host, port, timeout=timeout), path, f"{parts.scheme}://{parts.netloc}"
