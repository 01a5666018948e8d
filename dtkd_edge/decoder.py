"""The decoder itself (decord, from the package `decord2`): opened, its frames, and what it does not decode. No torch."""

from __future__ import annotations

import io
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import Empty, Queue
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.errors import VideoError

T = TypeVar("T")

EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".flv", ".3gp", ".ogv",
    ".asf", ".3g2", ".f4v", ".divx",
)  # fmt: skip
_TRANSPORT = (".ts", ".mts", ".m2ts", ".m2t")
# Of MPEG's transport and programme streams decord 3.4 loses the first frames, or finds none; of the others it takes rates or
# places for others.
UNREAD = (*_TRANSPORT, ".mpg", ".mpeg", ".vob", ".mxf", ".dv", ".rm", ".rmvb")
_ASF = bytes.fromhex("3026b2758e66cf11")  # how .wmv and .asf begin
_MATROSKA = bytes.fromhex("1a45dfa3")  # .mkv and .webm
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # what comes first in mp4 and mov
# Codecs whose frames the decoder finds by number though they are stored in another order than they are shown, as mp4 and as
# mkv call them. Not so those of MPEG-1, -2 and -4 part 2.
_REORDERED = {b"avc1", b"avc3", b"hvc1", b"hev1", b"vp08", b"vp09", b"av01",
              b"V_MPEG4/ISO/AVC", b"V_MPEGH/ISO/HEVC", b"V_VP8", b"V_VP9", b"V_AV1"}  # fmt: skip


def pixels(frame: Any) -> NDArray[np.uint8]:
    """A decoder's frame as uint8 `[H, W, 3]`, in its own memory."""
    return _unpadded(np.from_dlpack(_Lent(frame)))


class _Lent:
    """A decoder's frame as numpy takes it, without a copy: the decoder keeps its memory until the array is gone."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def __dlpack__(self, **_: Any) -> Any:
        return self._frame.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # the CPU


def _unpadded(frame: NDArray[Any]) -> NDArray[np.uint8]:
    """decord2 3.4 pads rows to 192 bytes, and takes the number of channels to be the row's bytes / width: where a width divides
    that (16, 24, 32, 48, 96, 144), the padding comes as "channels"."""
    height, width, channels = frame.shape
    return frame if channels == 3 else frame.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


_IMPORTING = threading.Lock()


@cache
def load_decord() -> Any:
    """The module `decord`, its log switched off, and imported without what it would bring along.

    decord2 3.4 loads every CUDA library that pip has installed, for builds that decode on a GPU, which the one from the index is
    not: 650 MB where torch is, into the names that all libraries share. A torch imported later then finds libnvblas's matrix
    product in place of its own, and crashes in it.
    """
    with _IMPORTING:
        modules = cast(dict[str, Any], sys.modules)
        there = {name: modules[name] for name in ("nvidia",) if name in modules}
        modules["nvidia"] = None  # to an import and to `find_spec`: no such package
        try:
            import decord
        finally:
            del modules["nvidia"]
            modules.update(there)
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def open_reader(path: Path, data: bytes | None, timeout: float) -> tuple[Any, bool]:
    """decord's reader of a file, or of its bytes in `data`, and whether it finds frames by their number, if they have times.

    VideoError where that is no video, where its container's frames come out wrong, or where it takes over `timeout` s.
    """
    if data is not None:
        seeks = _seeks(path, io.BytesIO(data), len(data))
    elif not path.is_file():
        raise VideoError(f"{path}: no such file" if not path.exists() else f"{path}: not a file", "check the path")
    else:
        try:
            with path.open("rb") as stream:
                seeks = _seeks(path, stream, path.stat().st_size)
        except OSError as error:
            raise VideoError(f"{path}: not readable: {error.strerror or error}", "check its permissions") from error
    decord = load_decord()
    source = str(path) if data is None else io.BytesIO(data)  # decord keeps a copy of its own
    return bounded(lambda: decord.VideoReader(source, num_threads=1), path, timeout), seeks


def _seeks(path: Path, stream: BinaryIO, size: int) -> bool:
    """Whether the decoder finds a frame by its number, as far as the container tells: in some it lands on another one, and says
    nothing. VideoError for what it cannot read, or reads wrong."""
    head = stream.read(4096)
    if why_not := _no_container(head, stream, size):
        raise VideoError(f"{path}: {why_not}", "copy or download it again, re-encode it, or leave it out")
    suffix = path.suffix.lower()
    if suffix := suffix if suffix in UNREAD else _mpeg_stream(head):
        raise _takes_others(path, suffix)
    if head.startswith(_MATROSKA):  # the tracks are described before the frames
        codecs = set(re.findall(rb"\x86[\x80-\xff](V_[A-Z0-9/]+)", head + stream.read(1 << 16)))
        return bool(codecs) and codecs <= _REORDERED
    if head[4:8] in _BOXES:
        return all(_index_seeks(path, stream, *moov) for moov in _inside(stream, 0, size, b"moov"))
    return not head.startswith(_ASF)


def _mpeg_stream(head: bytes) -> str:
    """The ending that an MPEG programme or transport stream should have; empty for all else."""
    if head.startswith(b"\0\0\1\xba"):
        return ".mpg"
    for ending, first, packet in ((".ts", 0, 188), (".mts", 4, 192)):
        marks = head[first::packet]
        if marks == b"G" * max(len(marks), 3):
            return ending
    return ""


def _no_container(head: bytes, stream: BinaryIO, size: int) -> str:
    """Why a file cannot be a video, as far as its outline shows; empty where it may be one.

    The decoder would find out too, but writes to standard error about it, past every log level.
    """
    if size == 0:
        return "the file is empty"
    if not any(byte < 9 for byte in head):  # every container has such bytes in its header
        return "no video: the file is text"
    # Without `moov`, the index, nothing in an mp4 can be decoded; it is often the last box.
    if head[4:8] == b"ftyp" and not any(kind in (b"moov", b"moof") for kind, *_ in _boxes(stream, 0, size)):
        return "the file is cut off: its index is missing"
    return ""


def _boxes(stream: BinaryIO, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """What mp4 and mov consist of, between two places of a file: type, begin and end of what is in it."""
    while at + 8 <= end:
        stream.seek(at)
        length, kind = struct.unpack(">I4s", stream.read(8))
        inside = at + 8
        if length == 1:
            length = int.from_bytes(stream.read(8), "big")
            inside += 8
        yield kind, inside, min(at + length, end) if length else end
        if length < 8:  # 0: the last box, to the end of the file
            return
        at += length


def _inside(stream: BinaryIO, at: int, end: int, *kinds: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of every box of the last of `kinds` that lies in one of the kind before, and so on."""
    for kind, first, last in _boxes(stream, at, end):
        if kind == kinds[0]:
            yield from _inside(stream, first, last, *kinds[1:]) if kinds[1:] else [(first, last)]


def _index_seeks(path: Path, stream: BinaryIO, at: int, end: int) -> bool:
    """Whether the videos of an mp4's index have codecs, or an order of frames, in which the decoder finds them by number.

    Of those that have neither it loses the first frames, unless an edit says that the first one is to be shown at once.
    """
    in_parts = any(_inside(stream, at, end, b"mvex"))  # the order is told beside the frames then
    seeks = True
    for track in _inside(stream, at, end, b"trak"):
        if not any(_inside(stream, *track, b"mdia", b"minf", b"vmhd")):  # no video
            continue
        for table in _inside(stream, *track, b"mdia", b"minf", b"stbl"):
            kinds = {kind: first for kind, first, _ in _boxes(stream, *table)}
            stream.seek(kinds.get(b"stsd", 0) + 12)
            if (in_parts or b"ctts" in kinds) and stream.read(4) not in _REORDERED:
                seeks = False
                if not any(_first_shown(stream, first) > 0 for first, _ in _inside(stream, *track, b"edts", b"elst")):
                    raise _takes_others(path, path.suffix)
    return seeks


def _first_shown(stream: BinaryIO, at: int) -> int:
    """The time, by a track's own clock, from which on it is shown, out of its list of edits."""
    stream.seek(at)
    wide = stream.read(8)[:1] == b"\1"
    times = stream.read(16 if wide else 8)
    return int.from_bytes(times[len(times) // 2 :], "big", signed=True)


def _reason(error: BaseException) -> str:
    """The decoder's complaint without its own source lines, numbers and repeated paths."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if "cannot find video stream" in text:
        return "it has no video stream"
    if "Error reading" in text:
        return "it is no video, or is cut off"
    if "Unable to handle EOF" in text or "broken metadata" in text:
        return "the decoder cannot count its frames"
    parts = re.split(r"\[\d\d:\d\d:\d\d\] \S+:\d+: |Check failed: .*\(\S+ vs\. \S+\) ", text)
    return next((part.strip() for part in reversed(parts) if part.strip()), type(error).__name__)


def bounded(work: Callable[[], T], path: Path, timeout: float, progress: Callable[[], object] = lambda: None) -> T:
    """Run a decoder call that may raise anything, or never return, and turn either into a VideoError (see `awaited`)."""
    done: Queue[T | BaseException] = Queue()

    def run() -> None:
        try:
            done.put(work())
        except BaseException as error:
            done.put(error)

    threading.Thread(target=run, daemon=True, name="decode").start()
    return awaited(done, path, timeout, progress)


def awaited(done: Queue[T | BaseException], path: Path, timeout: float, progress: Callable[[], object]) -> T:
    """What a decoder's thread hands over next. VideoError in place of what it raised, and where nothing comes within `timeout` s;
    while `progress`, how far it is, changes, it has as long again."""
    before: object = done  # that is no progress
    while (now := progress()) != before:
        before = now
        with suppress(Empty):
            got = done.get(timeout=timeout)
            if isinstance(got, VideoError):  # a file that was opened again says so itself
                raise got
            if isinstance(got, BaseException):
                raise VideoError(f"{path}: does not decode: {_reason(got)}", "re-encode the clip or leave it out") from got
            return got
    raise VideoError(f"{path}: did not decode within {timeout:g} s", "re-encode the clip or leave it out")


def _takes_others(path: Path, suffix: str) -> VideoError:
    return VideoError(f"{path}: the decoder takes other frames of such files than it is asked for", into_mp4(suffix))


def into_mp4(suffix: str) -> str:
    """What to do about a file that is only in the wrong container, or in one whose codecs mp4 does not take."""
    return f"remux: ffmpeg -i x{suffix} -c copy x.mp4" if suffix in _TRANSPORT else f"re-encode: ffmpeg -i x{suffix} new.mp4"
