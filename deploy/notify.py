"""What systemd wants to hear from a service of `Type=notify`: ready, alive, stopping (see sd_notify(3)). Silent elsewhere."""

from __future__ import annotations

import os
import socket
import threading

from dtkd_edge.console import say
from dtkd_edge.deploy.session import Session


class Notifier:
    """Datagrams to $NOTIFY_SOCKET. With $WATCHDOG_USEC it says WATCHDOG=1 twice in that time, and only while the pipeline turns:
    a camera driver or a model that hangs stops it, and systemd starts the service again."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        mine = os.environ.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
        usec = os.environ.get("WATCHDOG_USEC", "")
        self.limit = int(usec) / 1e6 if mine and usec.isdigit() and int(usec) > 0 else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        self._mute = False

    def start(self) -> None:
        """Say that the first label can come."""
        if not self._address:
            return
        self._send("READY=1", self._status())
        self._thread.start()

    def stop(self) -> None:
        if self._address and not self._stop.is_set():
            self._stop.set()
            self._send("STOPPING=1")

    def _run(self) -> None:
        pause = self.limit / 2 if self.limit else 10.0
        stuck = False
        while not self._stop.wait(pause):
            was, stuck = stuck, self.limit is not None and self.session.pipeline.stalled() >= pause
            if stuck and not was:
                which = self.session.pipeline.slowest()
                say(f"the {which} thread has not turned for {pause:.0f} s: the watchdog is not told to wait")
            if not stuck:
                self._send(*(["WATCHDOG=1"] if self.limit else []), self._status())

    def _status(self) -> str:
        """What `systemctl status` shows."""
        grabber, ages = self.session.pipeline.grabber, self.session.pipeline.ages
        return f"STATUS={grabber.state}, {grabber.fps:.0f} fps, {ages.count} labels, age p90 {ages.percentile(90) * 1000:.0f} ms"

    def _send(self, *lines: str) -> None:
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address  # @: Linux' abstract names
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.settimeout(1.0)
                out.connect(address)
                out.send("\n".join(lines).encode())
        except OSError as error:
            if not self._mute:
                self._mute = True
                say(f"$NOTIFY_SOCKET {self._address}: {error.strerror or error}")
