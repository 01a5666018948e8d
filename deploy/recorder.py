"""`--record`: the annotated picture as an mp4 file; `--events`: label events as JSON lines."""

from __future__ import annotations

import io
import json
import queue
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dtkd_edge.console import counted, say
from dtkd_edge.deploy import overlay
from dtkd_edge.deploy.camera import Frame
from dtkd_edge.deploy.live import Live
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.sources.av import import_av
from dtkd_edge.errors import InputError

TICKS = 90_000  # of the file's clock in a second: frames keep the time at which they were captured
GROUP = 60  # frames that a power cut, a kill or a full disk may cost: the file is written in parts of so many
HYBRID = (61, 7, 0)  # the libavformat of FFmpeg 7.1
QUEUE = 8  # frames that may wait for the encoder; more are left out of the file


def cut_to_media(path: Path) -> None:
    """Shorten an mp4 whose writing broke off to the last box with pictures in it (ISO/IEC 14496-12: of a `moof`, which says where
    they are, players want all or nothing, of the pictures in an `mdat` they take what is there). A whole file stays as it is."""
    with path.open("r+b") as file:
        size = file.seek(0, io.SEEK_END)
        at = end = 0
        while at + 8 <= size:
            file.seek(at)
            length, kind = struct.unpack(">I4s", file.read(8))
            if length == 1:  # the length stands behind the kind, in eight bytes
                long = file.read(8)
                length = int.from_bytes(long, "big") if len(long) == 8 else 0
            if length < 8:
                break
            at += length
            if kind == b"mdat":
                end = min(at, size)
        if end and at != size:
            file.truncate(end)


class Recorder:
    """Takes every frame of a pipeline's source and writes it with the newest label. A full disk ends the file, not the run."""

    def __init__(self, path: Path, pipeline: Pipeline) -> None:
        self.path, self.pipeline = path, pipeline
        self.written = self.skipped = 0
        self._av = import_av()
        self._file: Any = None
        self._stream: Any = None
        self._first = 0.0
        self._last_tick = -1
        self._queue: queue.Queue[tuple[Frame, Live | None] | None] = queue.Queue(QUEUE)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            there = path.exists()
            path.open("ab").close()  # an older recording stays until the first frame has come
            if not there:
                path.unlink()
        except OSError as error:
            raise InputError(f"--record {path}: {error.strerror}", "choose a file in a folder that can be written to") from error

    def start(self) -> None:
        self.pipeline.grabber.listeners.append(self._take)
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, and the file's index, without which no player opens it."""
        if self._take in self.pipeline.grabber.listeners:
            self.pipeline.grabber.listeners.remove(self._take)
        self._queue.put(None)
        self._thread.join(20)
        if self.written:
            say(
                f"recorded {counted(self.written, 'frame')} to {self.path}"
                + (f", left out {self.skipped}" if self.skipped else "")
            )

    def _take(self, frame: Frame) -> None:
        taken = (frame, self.pipeline.live)  # what was known when it came: the encoder may be some frames behind
        if self.pipeline.grabber.source.waits:
            self._queue.put(taken)
            return
        try:
            self._queue.put_nowait(taken)
        except queue.Full:
            self.skipped += 1

    def _run(self) -> None:
        taken: tuple[Frame, Live | None] | None = None
        try:
            while (taken := self._queue.get()) is not None:
                self._write(*taken)
            self._close()
        except Exception as error:  # whatever it is: the queue has to be emptied, or neither a fast source nor `stop` goes on
            say(f"--record {self.path}: {getattr(error, 'strerror', None) or error}; the recording ends here, the rest goes on")
            with suppress(Exception):
                if self._file is not None:
                    self._file.close()
            with suppress(OSError):
                if self._file is not None:
                    cut_to_media(self.path)
            while taken is not None:
                taken = self._queue.get()

    def _write(self, frame: Frame, live: Live | None) -> None:
        grabber = self.pipeline.grabber
        picture = overlay.draw(frame.image, live, None if grabber.source.waits else grabber.fps)
        if self._file is None:
            self._open(picture, frame)
        size = (self._stream.width, self._stream.height)
        if (picture.shape[1], picture.shape[0]) != size:  # the source changed its size, or has an odd one
            picture = np.asarray(Image.fromarray(picture).resize(size))
        tick = max(round((frame.time - self._first) * TICKS), self._last_tick + 1)
        self._last_tick = tick
        coded = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
        coded.pts, coded.time_base = tick, Fraction(1, TICKS)
        self._file.mux(self._stream.encode(coded))
        self.written += 1

    def _open(self, picture: NDArray[np.uint8], frame: Frame) -> None:
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        # In parts, so that what is there plays when the end never comes; the newer way leaves an ordinary file at an orderly end.
        newer = self._av.library_versions["libavformat"] >= HYBRID
        flags = "frag_keyframe+hybrid_fragmented" if newer else "frag_keyframe+empty_moov+default_base_moof"
        parts = {"movflags": flags, "flush_packets": "1"}
        self._file = self._av.open(str(self.path), "w", format="mp4", options=parts)
        options = {"g": str(GROUP), **({"preset": "veryfast", "crf": "22"} if codec == "libx264" else {})}
        self._stream = self._file.add_stream(codec, rate=30, options=options)
        self._stream.width, self._stream.height = picture.shape[1] // 2 * 2, picture.shape[0] // 2 * 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS)
        self._first = frame.time

    def _close(self) -> None:
        if self._file is None:  # not one frame came
            return
        self._file.mux(self._stream.encode())
        self._file.close()


class EventLog:
    """One JSON line per event, written when it ends and flushed, so that a crash loses at most the event that is on."""

    def __init__(self, path: Path, about: Callable[[], dict[str, str]] = dict) -> None:
        """about: what every line says besides, such as the source: it may change while the log goes on."""
        self.path, self.about = path, about
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"--events {path}: {error.strerror}", "choose a file in a folder that can be written to") from error
        self._failed = False

    def __call__(self, live: Live) -> None:
        if not live.ends or self._failed:
            return
        try:
            for event in live.ends:
                self._file.write(json.dumps({**event.to_json(), **self.about()}, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            self._failed = True
            say(f"--events {self.path}: {error.strerror}; no more events are written, the rest goes on")

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            say(f"--events {self.path}: {error.strerror}")
