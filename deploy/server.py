"""The web view: one page, one WebSocket. Every viewer gets the newest state and picture; who reads too slowly is dropped."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from dtkd_edge.console import say
from dtkd_edge.deploy import page
from dtkd_edge.deploy.guard import COOKIE, Guard, is_loopback, new_token
from dtkd_edge.deploy.metrics import prometheus
from dtkd_edge.deploy.page import to_jpeg
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.session import Session
from dtkd_edge.deploy.sources.browser import BrowserSource
from dtkd_edge.deploy.webhook import Webhook
from dtkd_edge.errors import MissingDependency, NotHereError, UsageError

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

ASSETS = {"/": "index.html", "/app.js": "app.js", "/style.css": "style.css"}
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
PICTURES_PER_S = 25
MAX_VIEWERS = 64
MAX_MESSAGE = 1 << 20  # bytes that a viewer may send at once
MAX_MESSAGES_PER_S = 90
SLOW_S = 5.0  # a message that a viewer does not take within this long ends its connection
STALLED_S = 30.0  # a thread of the pipeline that does not come round for so long hangs: opening a stream may take a third of it
SENT_EVENTS = 60


class Viewer:
    """One WebSocket. `wake` is set when there is something new; what is new is looked up when it is sent."""

    def __init__(self, websocket: WebSocket) -> None:
        self.websocket = websocket
        self.wake = asyncio.Event()
        self.greeted = -1
        self.events_sent = -1
        self.picture_sent = 0


class WebView:
    """Serves a running pipeline. The server has a thread and an event loop of its own."""

    def __init__(
        self, session: Session, host: str, port: int, *, token: str | None = None, webhook: Webhook | None = None
    ) -> None:
        self.session, self.host, self.port, self.webhook = session, host, port, webhook
        self.token = token or (None if is_loopback(host) else new_token())
        self.guard = Guard(self.token)
        self.viewers: set[Viewer] = set()
        self.slow = self.refused = self.viewers_total = 0
        self._picture: tuple[int, bytes] = (0, b"")
        self._text = ""  # the newest state, made once for all viewers
        self._sender: Viewer | None = None
        self._server: Any = None
        self._thread: threading.Thread | None = None

    @property
    def pipeline(self) -> Pipeline:
        return self.session.pipeline

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.host in ("0.0.0.0", "::"):
            host = _own_address()
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    def start(self) -> None:
        """Bind and serve. Port 0 takes a free one. Raises UsageError where the address cannot be had."""
        try:
            import uvicorn
            import websockets  # noqa: F401
        except ImportError as error:
            raise MissingDependency(f"the web view needs the Python library {error.name}", extra="demo") from error
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, self.port))
        except OSError as error:
            listener.close()
            reason = error.strerror or str(error)
            raise UsageError(
                f"--host {self.host} --port {self.port}: {reason}", "choose another --port, or 0 for a free one"
            ) from error
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app(), log_level="error", access_log=False, ws_max_size=MAX_MESSAGE, ws_ping_interval=20, ws_ping_timeout=20,
            timeout_graceful_shutdown=2, server_header=False, proxy_headers=False, ws_max_queue=8, lifespan="on",
            ws_per_message_deflate=False,  # pictures are compressed already: for twenty viewers it took half a core
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="web", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        if not self._server.started:
            raise NotHereError(f"the web view did not start on {self.host}:{self.port}", "try another --port, or --view none")

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(5)

    def _app(self) -> Any:
        try:
            from starlette.applications import Starlette
            from starlette.routing import Route, WebSocketRoute
        except ImportError as error:
            raise MissingDependency("the web view needs the Python library starlette", extra="demo") from error

        @asynccontextmanager
        async def lifespan(_: Any) -> AsyncIterator[None]:
            task = asyncio.create_task(self._broadcast())
            yield
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        routes: list[Any] = [Route(path, self._asset) for path in ASSETS]
        routes += [Route("/health", self._health), Route("/metrics", self._metrics), WebSocketRoute("/ws", self._socket)]
        return Starlette(routes=routes, lifespan=lifespan)

    # --- HTTP

    def _refusal(self, connection: HTTPConnection) -> str | None:
        query, cookie = connection.query_params.get("token"), connection.cookies.get(COOKIE)
        reason = self.guard.refusal(connection.headers, query, cookie)
        if reason is not None:
            self.refused += 1
            if self.refused <= 20 or self.refused % 100 == 0:  # a scanner must not fill the log
                peer = connection.client.host if connection.client else "?"
                say(f"refused: {connection.url.path} from {peer}: {reason}")
        return reason

    async def _asset(self, request: Request) -> Response:
        from starlette.responses import PlainTextResponse, Response

        reason = self._refusal(request)
        if reason is not None:
            return PlainTextResponse(f"{reason}\n", 403)
        name = ASSETS[request.url.path]
        body = files("dtkd_edge.deploy").joinpath("web").joinpath(name).read_bytes()
        response = Response(body, media_type=TYPES[name.rpartition(".")[2]])
        host = request.headers.get("host", "")
        response.headers.update(
            {
                "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
                f"media-src 'self' blob:; connect-src 'self' ws://{host} wss://{host}; base-uri 'none'; form-action 'none'; "
                "frame-ancestors 'none'",
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-cache",
            }
        )
        if self.token and request.query_params.get("token"):
            response.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", max_age=30 * 24 * 3600)
        return response

    async def _health(self, request: Request) -> Response:
        """For a supervisor: 200 while labels can come, 503 when source or model failed or hang. Says nothing private."""
        from starlette.responses import JSONResponse

        pipeline = self.pipeline
        status: str = "failed" if pipeline.failure() else pipeline.grabber.state
        if status != "failed" and pipeline.stalled() > STALLED_S:
            status = "stuck"
        good = status not in ("failed", "stuck")
        return JSONResponse({"status": status, "labels": pipeline.inferences.count}, 200 if good else 503)

    async def _metrics(self, request: Request) -> Response:
        from starlette.responses import PlainTextResponse

        reason = self._refusal(request)
        if reason is not None:
            return PlainTextResponse(f"{reason}\n", 403)
        own = {"viewers": len(self.viewers), "viewers_slow": self.slow, "refused": self.refused}
        if self.webhook is not None:
            own |= {f"webhook_{name}": count for name, count in self.webhook.counts().items()}
        return PlainTextResponse(prometheus(self.pipeline, own), media_type="text/plain; version=0.0.4")

    # --- WebSocket

    async def _socket(self, websocket: WebSocket) -> None:
        reason = self._refusal(websocket)
        if reason is not None or len(self.viewers) >= MAX_VIEWERS:
            await websocket.close(1008 if reason else 1013)
            return
        await websocket.accept()
        viewer = Viewer(websocket)
        self.viewers.add(viewer)
        self.viewers_total += 1
        viewer.wake.set()
        sending = asyncio.create_task(self._send(viewer))
        receiving = asyncio.create_task(self._receive(viewer))
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.viewers.discard(viewer)
            if self._sender is viewer:
                self._sender = None
            for task in (sending, receiving):
                task.cancel()
            viewer.wake.set()  # before Python 3.12 `wait_for` may swallow the cancelling: then the loop ends by its condition
            with suppress(asyncio.CancelledError):  # when the server itself stops
                await asyncio.gather(sending, receiving, return_exceptions=True)
            with suppress(Exception):
                await asyncio.wait_for(websocket.close(1011), 1)

    async def _send(self, viewer: Viewer) -> None:
        async def out(message: str | bytes) -> None:
            send = viewer.websocket.send_text(message) if isinstance(message, str) else viewer.websocket.send_bytes(message)
            await asyncio.wait_for(send, SLOW_S)

        try:
            while viewer in self.viewers:
                await viewer.wake.wait()
                viewer.wake.clear()
                if self.session.number != viewer.greeted:
                    viewer.greeted, viewer.events_sent = self.session.number, -1
                    await out(json.dumps(page.hello(self.session)))
                number, jpeg = self._picture
                if number != viewer.picture_sent:
                    viewer.picture_sent = number
                    await out(jpeg)
                if self.pipeline.events_ended != viewer.events_sent:
                    viewer.events_sent = self.pipeline.events_ended
                    events = [event.to_json() for event in list(self.pipeline.events)[-SENT_EVENTS:]]
                    await out(json.dumps({"type": "events", "events": events}))
                await out(self._text or json.dumps(page.state(self.session, self.webhook)))
        except asyncio.TimeoutError:
            self.slow += 1

    async def _receive(self, viewer: Viewer) -> None:
        """A wish to switch; pictures, only in browser mode and from one viewer; anything else is passed over, a flood ends it."""
        from starlette.websockets import WebSocketDisconnect

        second, count = 0, 0
        with suppress(WebSocketDisconnect, RuntimeError):
            while viewer in self.viewers:
                message = await viewer.websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                now = int(time.monotonic())
                second, count = (now, count + 1) if now == second else (now, 1)
                if count > MAX_MESSAGES_PER_S:
                    say("a viewer sent too many messages and was dropped")
                    return
                data, source = message.get("bytes"), self.pipeline.grabber.source
                if (wish := page.wish(message.get("text"))) is not None:
                    await asyncio.to_thread(self.session.switch, *wish)
                    if not isinstance(self.pipeline.grabber.source, BrowserSource):
                        self._sender = None  # whoever comes back to `browser` first sends
                if not data or len(data) <= 8 or not isinstance(source, BrowserSource):
                    continue
                if self._sender is None:
                    self._sender = viewer
                if self._sender is viewer:
                    (stamp,) = struct.unpack("<d", data[:8])
                    source.push(data[8:], stamp if math.isfinite(stamp) else 0.0)  # JSON has no NaN: pages would choke on it
                    await asyncio.wait_for(viewer.websocket.send_text('{"type":"got"}'), SLOW_S)

    async def _broadcast(self) -> None:
        """Encode the newest picture once for all, and wake the viewers. Idle while nobody looks."""
        seen, told = 0, 0.0
        while True:
            await asyncio.sleep(1 / PICTURES_PER_S)
            if not self.viewers:
                continue
            frame = self.pipeline.grabber.latest()
            if frame is not None and frame.index != seen:
                seen = frame.index
                sending = isinstance(self.pipeline.grabber.source, BrowserSource)
                only = sending and len(self.viewers) == 1 and self._sender in self.viewers  # it shows its own camera itself
                if not only:
                    self._picture = (seen, await asyncio.to_thread(to_jpeg, frame.image))
            elif time.monotonic() - told < 0.5:  # without pictures the state still changes, but need not hurry
                continue
            told = time.monotonic()
            self._text = json.dumps(page.state(self.session, self.webhook))
            for viewer in self.viewers:
                viewer.wake.set()


def _own_address() -> str:
    """The address of this machine that the network sees; nothing is sent to find it."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return socket.gethostname()
