"""The decoder itself (decord, from the package `decord2`): opened, its frames, and what it does not decode. No torch."""

from __future__ import annotations

import io
import re
import struct
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.errors import VideoError

T = TypeVar("T")

EXTENSIONS = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv",
    ".asf", ".3g2", ".f4v", ".divx", ".vob",
)  # fmt: skip
# Of transport streams decord 3.4 loses the first frames, or finds none; of the others it takes rates or places for others.
UNREAD = (".ts", ".mts", ".m2ts", ".m2t", ".mxf", ".dv", ".rm", ".rmvb")
_ASF = bytes.fromhex("3026b2758e66cf11")  # how .wmv and .asf begin


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


def open_reader(path: Path, data: bytes | None, timeout: float) -> Any:
    """decord's reader of a file, or of its bytes in `data`; VideoError where that is no video, where its container's frames come
    out wrong, or where it takes over `timeout` s."""
    if path.suffix.lower() in UNREAD:
        raise VideoError(f"{path}: the decoder takes other frames of such files than it is asked for", remux(path.suffix))
    if data is not None:
        why_not = _no_container(io.BytesIO(data), len(data))
    elif not path.is_file():
        raise VideoError(f"{path}: no such file" if not path.exists() else f"{path}: not a file", "check the path")
    else:
        try:
            with path.open("rb") as stream:
                why_not = _no_container(stream, path.stat().st_size)
        except OSError as error:
            raise VideoError(f"{path}: not readable: {error.strerror or error}", "check its permissions") from error
    if why_not:
        raise VideoError(f"{path}: {why_not}", "copy or download it again, re-encode it, or leave it out")
    decord = load_decord()
    source = str(path) if data is None else io.BytesIO(data)  # decord keeps a copy of its own
    return bounded(lambda: decord.VideoReader(source, num_threads=1), path, timeout)


def seeks(path: Path, data: bytes | None, times_known: bool) -> bool:
    """Whether the decoder finds a frame by its number. Where frames have no times (MPEG programme streams, h264 or B frames in
    .avi) and in ASF (.wmv) it lands on another one, and says nothing."""
    if not times_known:
        return False
    if data is not None:
        return not data.startswith(_ASF)
    with path.open("rb") as stream:
        return stream.read(len(_ASF)) != _ASF


def _no_container(stream: BinaryIO, size: int) -> str:
    """Why a file cannot be a video, as far as its outline shows; empty where it may be one.

    The decoder would find out too, but writes to standard error about it, past every log level.
    """
    if size == 0:
        return "the file is empty"
    head = stream.read(4096)
    if not any(byte < 9 for byte in head):  # every container has such bytes in its header
        return "no video: the file is text"
    if head[4:8] != b"ftyp":
        return ""
    # mp4 and mov: boxes of length and type. Without `moov`, the index, nothing can be decoded; it is often the last one.
    at = 0
    while at + 8 <= size:
        stream.seek(at)
        length, kind = struct.unpack(">I4s", stream.read(8))
        if length == 1:
            length = int.from_bytes(stream.read(8), "big")
        if kind in (b"moov", b"moof"):
            return ""
        if length < 8:  # 0: the last box, to the end of the file
            break
        at += length
    return "the file is cut off: its index is missing"


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


def bounded(work: Callable[[], T], path: Path, timeout: float) -> T:
    """Run a decoder call that may raise anything, or never return, and turn either into a VideoError."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="decode")
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise too_slow(path, timeout)
    if failure:
        raise undecodable(path, failure[0])
    return result[0]


def too_slow(path: Path, timeout: float) -> VideoError:
    return VideoError(f"{path}: did not decode within {timeout:g} s", "re-encode the clip or leave it out")


def undecodable(path: Path, error: BaseException) -> VideoError:
    if isinstance(error, VideoError):  # a file that was opened again says so itself
        return error
    return VideoError(f"{path}: does not decode: {_reason(error)}", "re-encode the clip or leave it out")


def remux(suffix: str) -> str:
    """What to do about a file that is only in the wrong container."""
    return f"remux: ffmpeg -i x{suffix} -c copy x.mp4"
