"""Who may see the picture: a page on this machine, or somebody with the token. Nothing else, whatever the network is."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

COOKIE = "dtkd_edge_token"
LOCAL_NAMES = {"localhost", "localhost.localdomain"}


def is_loopback(host: str) -> bool:
    """Whether a server bound to this address is reachable from this machine alone."""
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    return secrets.token_urlsafe(16)


class Guard:
    """token: None where the server is bound to loopback, and then only loopback names are served, because a page on the web
    can point its own name at 127.0.0.1 (DNS rebinding)."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def refusal(self, headers: Mapping[str, str], query_token: str | None, cookie_token: str | None) -> str | None:
        """Why this request is refused, or None."""
        host = headers.get("host", "")
        if self.token is None and not is_loopback(_hostname(host)):
            return f"host {host[:80]!r} is not this machine"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return f"foreign origin {origin[:80]!r}"
        if self.token is not None:
            given = query_token or cookie_token or ""
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                return "wrong or missing token"
        return None


def _hostname(host: str) -> str:
    """'[::1]:8080' → '::1', 'localhost:8080' → 'localhost'."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
