"""A web server on loopback that serves a folder with Range requests, and can be told to misbehave."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Site:
    """ranges: whether parts are served. trouble: what the next answers are: a status, or `cut` for a body that breaks off."""

    url: str = ""
    ranges: bool = True
    trouble: list[int | str] = field(default_factory=list)
    served: list[tuple[str, int]] = field(default_factory=list)  # path and bytes of every answer
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: object, site: Site, **more: object) -> None:
        self.site = site
        super().__init__(*args, **more)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        with self.site.lock:
            trouble = self.site.trouble.pop(0) if self.site.trouble else None
        if isinstance(trouble, int):
            return self.send_error(trouble)
        if not path.is_file():
            return self.send_error(404)
        data, status = path.read_bytes(), 200
        total = len(data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.site.ranges:
            first, last = int(wanted[1]), min(int(wanted[2]), total - 1)
            if first >= total:
                return self.send_error(416)
            data, status = data[first : last + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 206 and wanted:
            self.send_header("Content-Range", f"bytes {wanted[1]}-{int(wanted[1]) + len(data) - 1}/{total}")
        self.end_headers()
        with self.site.lock:
            self.site.served.append((self.path, len(data)))
        self.wfile.write(data[: len(data) // 2] if trouble == "cut" else data)


@contextmanager
def serve(folder: Path) -> Iterator[Site]:
    """The folder at `site.url`, until the block ends."""
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, site=site, directory=str(folder)))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a reader may go away
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
