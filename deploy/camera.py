"""Pictures from where they come to a slot that holds only the newest one, so that nothing that reads it can fall behind."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.console import say
from dtkd_edge.errors import DtkdEdgeError

BACKOFF_S = (0.5, 5.0)  # first and longest pause between attempts to reconnect
RATE_WINDOW_S = 2.0  # frame rates are means over this long

State = Literal["starting", "live", "reconnecting", "ended", "failed"]


@dataclass(frozen=True)
class Frame:
    """image: uint8 RGB `[H, W, 3]`, never written to. captured: seconds of time.monotonic(), from which its age is counted.

    time: seconds by which clips are sampled and events are dated: `captured`, or a file's own time where it is read fast.
    stamp: the sender's own clock.
    """

    image: NDArray[np.uint8]
    captured: float
    index: int
    time: float
    stamp: float | None = None


class SourceLost(Exception):
    """The source was there and is not any more; opening it again may help."""


class Source(ABC):
    """Where pictures come from. All calls come from one thread, but for `close`, which may come from any.

    waits: nothing is lost by reading later, so every picture waits until it was used, and the stamp that `read` gives with it
    is the time, in seconds, that clips are sampled by. A camera does not wait.
    patient: `read` may rightly take for ever, because somebody has to do something first.
    """

    name: str
    waits: bool = False
    patient: bool = False

    @abstractmethod
    def open(self) -> None:
        """Start it, or start it again. Raises MissingDevice, MissingDependency or InputError where it cannot be had."""

    @abstractmethod
    def read(self) -> tuple[NDArray[np.uint8], float | None] | None:
        """The next picture, as soon as there is one, with the sender's time stamp if it sends any; None at the end.

        Raises SourceLost when it broke off.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the device. A `read` that waits returns soon after."""

    def release(self) -> None:  # noqa: B027  a source that `close` has freed already has nothing to do here
        """Called by the reading thread when it is done with the source, for what no other thread may free."""


class Rate:
    """Events per second over the last seconds. Thread-safe enough: one thread ticks, others read."""

    def __init__(self, window: float = RATE_WINDOW_S) -> None:
        self._window = window
        self._times: deque[float] = deque(maxlen=1000)

    def tick(self, now: float) -> None:
        self._times.append(now)

    def value(self, now: float) -> float:
        recent = [t for t in list(self._times) if t > now - self._window]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) / (recent[-1] - recent[0]) if recent[-1] > recent[0] else 0.0


class Grabber:
    """Reads a source in a thread of its own; keeps the newest frame and counts those that nobody took.

    A source that waits is read when its last frame was taken, and nothing is dropped.
    """

    def __init__(self, source: Source, *, backoff: tuple[float, float] = BACKOFF_S) -> None:
        self.source = source
        self.state: State = "starting"
        self.error: DtkdEdgeError | None = None
        self.grabbed = self.dropped = self.reconnects = 0
        self.listeners: list[Callable[[Frame], None]] = []  # called in this thread with every frame; must return at once
        self.turned = time.monotonic()  # when a picture or an attempt to get one was last over
        self._backoff = backoff
        self._rate = Rate()
        self._slot: Frame | None = None
        self._taken = True
        self._news = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="grabber", daemon=True)

    def start(self) -> None:
        """Open the source, here and now, so that a camera that is not there is the caller's error; then go on in the thread.

        Harmless when called again.
        """
        if self._thread.ident is not None:
            return
        self.source.open()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self.source.close()
        with self._news:
            self._news.notify_all()
        if self._thread.is_alive():
            self._thread.join(5)

    @property
    def running(self) -> bool:
        return self.state not in ("ended", "failed")

    @property
    def fps(self) -> float:
        return self._rate.value(time.monotonic())

    def latest(self) -> Frame | None:
        """The newest frame, without taking it from anybody."""
        return self._slot

    def take(self, timeout: float = 0.5) -> Frame | None:
        """The newest frame that was not taken before; waits for one. None after the timeout, or at the end."""
        with self._news:
            self._news.wait_for(lambda: not self._taken or not self.running or self._stop.is_set(), timeout)
            if self._taken:
                return None
            self._taken = True
            self._news.notify_all()
            return self._slot

    def _put(self, image: NDArray[np.uint8], stamp: float | None) -> None:
        with self._news:
            if self.source.waits:
                self._news.wait_for(lambda: self._taken or self._stop.is_set())
            now = time.monotonic()
            self.dropped += not self._taken
            self.grabbed += 1
            time_of = now if stamp is None or not self.source.waits else stamp
            self._slot = Frame(image, now, self.grabbed, time_of, stamp)
            self._taken = False
            self._rate.tick(now)
            self._news.notify_all()
            frame = self._slot
        for listener in self.listeners:
            listener(frame)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.turned = time.monotonic()
                try:
                    read = self.source.read()
                except SourceLost as reason:
                    if not self._reconnect(reason):
                        return
                    continue
                if read is None:
                    return self._end("ended")
                self.state = "live"
                self._put(*read)
        except DtkdEdgeError as error:
            self.error = error
            self._end("failed")
        except Exception as error:  # a decoder may raise anything; the run ends with its words instead of hanging
            if not self._stop.is_set():
                self.error = DtkdEdgeError(f"{self.source.name}: {type(error).__name__}: {error}", "run it again with --debug")
            self._end("failed" if self.error else "ended")
        finally:
            with suppress(Exception):
                self.source.release()

    def _reconnect(self, reason: SourceLost) -> bool:
        """Try until it works or somebody stops us, with a pause that doubles. A log gets two lines, however long it takes."""
        if self._stop.is_set():  # reading failed because it was closed
            return False
        self.state = "reconnecting"
        say(f"--source {self.source.name}: lost ({reason}); trying to get it back")
        lost = time.monotonic()
        pause, longest = self._backoff
        while not self._stop.wait(pause):
            self.turned = time.monotonic()
            pause = min(2 * pause, longest)
            try:
                self.source.open()
            except (DtkdEdgeError, SourceLost):
                continue
            self.reconnects += 1
            say(f"--source {self.source.name}: back after {time.monotonic() - lost:.1f} s")
            return True
        return False

    def _end(self, state: State) -> None:
        with self._news:
            self.state = state
            self._news.notify_all()
