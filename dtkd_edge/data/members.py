"""Bytes out of the middle of a shard: a tar file on a disk, or on a web server by HTTP Range requests. No torch."""

from __future__ import annotations

import http.client
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from dtkd_edge.errors import DataError, DtkdEdgeError, NotHereError

Place = Path | str  # of a file: a path, or a URL

TRIES = 8  # of a clip: about a minute, so that a server's restart costs no training
TRIES_AT_ONCE = 3  # of the index, while a person waits
FIRST_WAIT_S = 0.5  # before the second try; doubled before every later one
LONGEST_WAIT_S = 60.0  # that a server may ask for with Retry-After
TIMEOUT_S = 30.0  # without a byte
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that another try may better
ELSEWHERE = "or copy the shards and name their folder: --set data.root=FOLDER"


@dataclass(frozen=True)
class Shard:
    """One tar file as the index describes it: bytes, and the sha256 of all of them."""

    place: Place
    size: int
    sha256: str

    def check(self) -> None:
        """That it is there and as long as the index says. DataError where it is not, NotHereError where no server answers."""
        if isinstance(self.place, str):
            _fetch(self, 0, 1)
            return
        try:
            found = self.place.stat().st_size
        except OSError as error:
            raise DataError(f"{self.place}: shard missing ({error.strerror})", "copy it again, or pack again") from error
        if found != self.size:
            raise _other(self, found)


@dataclass(frozen=True)
class Member:
    """One file inside a shard: `size` bytes from `offset` on."""

    shard: Shard
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes. DataError for a shard that is missing, cut off or another one; NotHereError where no server answers."""
        shard = self.shard
        if isinstance(shard.place, str):
            return _fetch(shard, self.offset, self.size)
        try:
            with shard.place.open("rb") as stream:
                stream.seek(self.offset)
                data = stream.read(self.size)
        except OSError as error:
            raise DataError(f"{shard.place}: not readable ({error.strerror})", "copy it again, or pack again") from error
        if len(data) != self.size:
            raise _other(shard, shard.place.stat().st_size)
        return data

    @property
    def state(self) -> list[int]:
        """Changes when the shard does."""
        return [self.offset, self.size, int(self.shard.sha256[:15], 16)]


def join(root: Place, name: str) -> Place:
    """A file below a folder or a URL; a query of the URL (a token, perhaps) is kept."""
    if isinstance(root, Path):
        return root / name
    scheme, host, path, query, _ = urlsplit(root)
    path = quote(path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    return urlunsplit((scheme, host, f"{path}/{quote(name)}", query, ""))


def shown(place: Place) -> str:
    """A place in a message: without the URL's query, which may hold a secret."""
    return str(place) if isinstance(place, Path) else urlunsplit((*urlsplit(place)[:3], "", ""))


def fetch(url: str) -> bytes:
    """All of a file. Raises as Member.read does."""
    return _patiently(url, {}, lambda answer: _body(answer, answer.length), TRIES_AT_ONCE)


def _fetch(shard: Shard, offset: int, size: int) -> bytes:
    url = str(shard.place)

    def take(answer: http.client.HTTPResponse) -> bytes:
        if answer.status != 206:
            raise DataError(
                f"{shown(url)}: the server does not serve parts of files (HTTP {answer.status} to a Range request)",
                f"use a server that does, such as nginx or an object store, {ELSEWHERE}",
            )
        total = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
        if total.isdecimal() and int(total) != shard.size:
            raise _other(shard, int(total))
        return _body(answer, size)

    return _patiently(url, {"Range": f"bytes={offset}-{offset + size - 1}"}, take, TRIES, shard)


def _body(answer: http.client.HTTPResponse, size: int | None) -> bytes:
    data = answer.read() if size is None else answer.read(size)
    if size is not None and len(data) != size:
        raise http.client.IncompleteRead(data, size - len(data))
    return data


def _patiently(
    url: str, headers: dict[str, str], take: Callable[[http.client.HTTPResponse], bytes], tries: int, shard: Shard | None = None
) -> bytes:
    """What `take` makes of the answer, after as many tries as passing trouble needs."""
    request = Request(url, headers={"User-Agent": "dtkd-edge", "Accept-Encoding": "identity", **headers})
    wait = FIRST_WAIT_S
    for left in range(tries - 1, -1, -1):
        try:
            with urlopen(request, timeout=TIMEOUT_S) as answer:
                return take(answer)
        except HTTPError as error:
            error.close()
            if error.code not in PASSING:
                raise _refused(url, error.code, shard) from error
            why, asked = f"HTTP {error.code}", error.headers.get("Retry-After", "")
            wait = max(wait, min(float(asked), LONGEST_WAIT_S)) if asked.isdecimal() else wait
        except (URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            why = (reason.strerror if isinstance(reason, OSError) else None) or str(reason) or type(error).__name__
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise NotHereError(f"{shown(url)}: {why}", "check the server's certificate and this machine's clock") from error
        if left:
            time.sleep(wait * random.uniform(0.75, 1.25))  # not all workers at the same moment
            wait *= 2
    raise NotHereError(f"{shown(url)}: no answer after {tries} tries: {why}", f"check the server and the network, {ELSEWHERE}")


def _refused(url: str, code: int, shard: Shard | None) -> DtkdEdgeError:
    what = "shard" if shard else "file"
    if code in (404, 410):
        return DataError(f"{shown(url)}: {what} missing (HTTP {code})", "copy it to the server, or check data.root")
    if code == 416 and shard is not None:
        return DataError(f"{shown(url)}: shard cut off: the index says {shard.size} bytes", "copy it to the server again")
    return DataError(f"{shown(url)}: the server refuses (HTTP {code})", "check data.root and the right to read it")


def _other(shard: Shard, found: int) -> DataError:
    what = "shard cut off" if found < shard.size else "not the shard of this index"
    return DataError(f"{shown(shard.place)}: {what}: {found} bytes, the index says {shard.size}", "copy it again, or pack again")
