"""Where live pictures come from. To add a source: a module with a Source, and a line in `open_source`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtkd_edge.errors import InputError, UsageError

if TYPE_CHECKING:
    from dtkd_edge.deploy.camera import Source


@dataclass(frozen=True)
class SourceOptions:
    """width, height, fps: asked of a camera or drawn by the pattern; loop: a file starts again at its end; fast: a file is
    read as fast as it is used, instead of at its own speed."""

    width: int | None = None
    height: int | None = None
    fps: float | None = None
    loop: bool = False
    fast: bool = False


def open_source(spec: str, options: SourceOptions | None = None) -> Source:
    """What `--source` names. Nothing is started before `Source.open`.

    pattern         a moving shape drawn here, for machines without a camera
    browser         the camera of whoever opens the web page
    0, /dev/video0  a camera          csi, csi:1   a Jetson's CSI camera
    rtsp://… http://… udp://…         a stream; anything else is a video file, played at its own speed
    """
    options = options or SourceOptions()
    if options.fast and not Path(spec).is_file():
        raise UsageError(f"--fast --source {spec}: only a video file can be read faster than it happens", "leave out --fast")
    if spec == "pattern":
        from dtkd_edge.deploy.sources.pattern import PatternSource

        return PatternSource(options)
    if spec == "browser":
        from dtkd_edge.deploy.sources.browser import BrowserSource

        return BrowserSource()
    if spec.isdigit() or spec.startswith(("/dev/video", "csi")):
        from dtkd_edge.deploy.sources.device import device_source

        return device_source(spec, options)
    from dtkd_edge.deploy.sources.av import FileSource, UrlSource

    if "://" in spec:
        kind = spec.partition("://")[0].lower()
        if kind not in ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt", "rtp"):
            raise UsageError(
                f"--source {kind}://…: not a stream protocol known here",
                "rtsp, rtmp, http, udp, tcp, srt, rtp",
            )
        return UrlSource(spec)
    if Path(spec).is_dir():
        raise InputError(f"--source {spec}: is a folder", "name one video in it; predict takes a folder")
    if not Path(spec).is_file():
        raise InputError(f"--source {spec}: no such file", "a camera number, a video file, a URL, pattern or browser")
    return FileSource(spec, options)
