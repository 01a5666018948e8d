"""Files and network streams (and, without OpenCV, cameras), decoded by PyAV."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.console import say
from dtkd_edge.deploy.camera import Source, SourceLost
from dtkd_edge.deploy.sources import SourceOptions
from dtkd_edge.errors import DtkdEdgeError, InputError, MissingDependency, MissingDevice

OPEN_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 5.0  # a stream that sends nothing for so long is lost
BROKEN_PACKETS = 50  # in a row, until a damaged stream counts as lost
LATE_S = 0.1  # a file's frames that are later than this are not converted, only decoded


def import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingDependency("live files and streams need the Python library av", extra="demo") from error
    return av


class AvSource(Source):
    """What PyAV can open. Damaged packets are passed over."""

    def __init__(self, url: str, *, format: str | None = None, options: dict[str, str] | None = None) -> None:
        # As messages name it: a camera's password is in its address.
        self.name = re.sub(r"(?<=://)[^/?]*@|\?.*", "", url) if "://" in url else url
        self._url = url
        self._format, self._options = format, options or {}
        self._container: Any = None
        self._frames: Iterator[Any] = iter(())
        self._closed = threading.Event()
        self.damaged = 0  # packets so far that did not decode

    def open(self) -> None:
        av = import_av()
        av.logging.set_level(av.logging.PANIC)
        if self._container is not None:
            self._container.close()
        try:
            timeout = (OPEN_TIMEOUT_S, READ_TIMEOUT_S)
            self._container = av.open(self._url, format=self._format, options=self._options, timeout=timeout)
        except av.error.ExitError as error:
            raise self._absent(f"nothing came within {OPEN_TIMEOUT_S:.0f} s") from error
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise self._absent(getattr(error, "strerror", None) or str(error)) from error
        if not self._container.streams.video:
            raise InputError(f"{self.name}: no video in it", "give a file or stream with a picture")
        stream = self._container.streams.video[0]
        stream.thread_type = "NONE" if self._live else "AUTO"  # frame threads would delay a live picture
        self._frames = self._decode(av, stream)

    _live = True

    def _absent(self, reason: str) -> DtkdEdgeError:
        return MissingDevice(f"--source {self.name}: cannot be opened: {reason}", "check the address and that the camera is on")

    def _decode(self, av: Any, stream: Any) -> Iterator[Any]:
        broken = 0
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets)
                yield from packet.decode()
                broken = 0
            except StopIteration:
                return
            except av.error.EOFError:
                return
            except av.error.InvalidDataError:
                broken += 1
                self.damaged += 1
                if broken > BROKEN_PACKETS:
                    raise SourceLost("too many damaged packets") from None
            except av.error.ExitError as error:
                raise SourceLost(f"nothing came for {READ_TIMEOUT_S:.0f} s") from error
            except (av.error.FFmpegError, OSError) as error:
                raise SourceLost(error.strerror or type(error).__name__) from error  # its text would hold the address

    def read(self) -> tuple[NDArray[np.uint8], float | None] | None:
        frame = next(self._frames, None)
        if self._closed.is_set():
            return None
        if frame is None:
            raise SourceLost("the stream ended")
        return to_rgb(frame), None

    def close(self) -> None:
        self._closed.set()  # the container belongs to the reading thread; its timeout ends a read that hangs

    def release(self) -> None:
        container, self._container, self._frames = self._container, None, iter(())
        # A camera has to be free for the next one who opens it. A file need not be; it is decoded by several threads, and `close`
        # can wait for ever for one that met damaged packets.
        if container is not None and self._live:
            container.close()


class UrlSource(AvSource):
    """A network camera or stream. A recording of known length ends; a live one that breaks off is connected again."""

    def __init__(self, url: str) -> None:
        options = {"fflags": "nobuffer", "flags": "low_delay"}
        if url.startswith("rtsp"):
            options["rtsp_transport"] = "tcp"
        super().__init__(url, options=options)

    def read(self) -> tuple[NDArray[np.uint8], float | None] | None:
        try:
            return super().read()
        except SourceLost:
            if self._container.duration and self.name.startswith("http"):
                return None
            raise


class FileSource(AvSource):
    """A video file at its own speed: a frame is given out when its time has come, and skipped when that has passed.

    fast: every frame, as soon as it is asked for, stamped with its time in the file.
    """

    _live = False

    def __init__(self, path: str, options: SourceOptions) -> None:
        super().__init__(path)
        if Path(path).stat().st_size == 0:
            raise InputError(f"--source {path}: the file is empty", "copy or download it again")
        self._loop, self._fps, self.waits = options.loop, options.fps, options.fast
        self._before = self._last = 0.0  # seconds of the rounds that are done, and of the newest frame
        self._start: float | None = None
        self._shown = 0

    def open(self) -> None:
        super().open()
        self._frames = self._whole(self._frames)

    def _absent(self, reason: str) -> DtkdEdgeError:
        return InputError(f"--source {self.name}: does not decode: {reason}", "re-encode it, or give another file")

    def read(self) -> tuple[NDArray[np.uint8], float | None] | None:
        for frame in self._frames:
            if self.waits:
                if self._closed.is_set():
                    return None
                self._last = self._before + self._at(frame)
                self._shown += 1
                return to_rgb(frame), self._last
            due = self._due(frame)
            wait = due - time.monotonic()
            if wait > 0:
                self._closed.wait(wait)
            if self._closed.is_set():
                return None
            if wait < -LATE_S and self._shown:
                continue
            self._shown += 1
            return to_rgb(frame), None
        if not self._shown:
            raise self._absent("no frame in it")
        if not self._loop or self._closed.is_set():
            return None
        self._start, self._shown = None, 0
        self._before = self._last + 1 / (self._fps or self._rate())
        self.open()
        return self.read()

    def _whole(self, frames: Iterator[Any]) -> Iterator[Any]:
        """A file that is damaged beyond some point ends there: opening it again would only play its start again."""
        known = self.damaged
        try:
            yield from frames
        except SourceLost as reason:
            say(f"--source {self.name}: {reason}; what comes after it is left out")
        else:
            if self.damaged and not known:  # once, of a file that is played again and again
                say(f"--source {self.name}: damaged: what does not decode of it, or what came after it, is left out")

    def _rate(self) -> float:
        return float(self._container.streams.video[0].average_rate or 30)

    def _at(self, frame: Any) -> float:
        """Seconds since the file's start, at the speed asked for."""
        rate = self._rate()
        at = float(frame.time) if frame.time is not None else self._shown / rate
        return at * (rate / self._fps if self._fps else 1.0)

    def _due(self, frame: Any) -> float:
        at = self._at(frame)
        if self._start is None:
            self._start = time.monotonic() - at
        due = self._start + at
        if due < time.monotonic() - 1.0:  # we were stopped (a suspended laptop): go on from here instead of racing after it
            self._start = time.monotonic() - at
        return due


def to_rgb(frame: Any) -> NDArray[np.uint8]:
    """The picture as a player shows it: phones write the turn into the file instead of turning the picture."""
    image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
