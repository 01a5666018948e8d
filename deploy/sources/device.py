"""Cameras of this machine: by OpenCV where it is installed, by PyAV's v4l2 where it is not, CSI by OpenCV's GStreamer."""

from __future__ import annotations

import glob
import os
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.deploy.camera import Source, SourceLost
from dtkd_edge.deploy.sources import SourceOptions
from dtkd_edge.deploy.sources.av import AvSource
from dtkd_edge.errors import DtkdEdgeError, MissingDependency, MissingDevice

HOW = "plug one in, or try: --source pattern, --source FILE, --source browser"
GSTREAMER_HOW = "on a Jetson use JetPack's own OpenCV: a venv made with --system-site-packages, without pip's opencv-python"
OPENCV_HOW = f"pip install opencv-python; {GSTREAMER_HOW}"
CSI_PIPELINE = (
    "nvarguscamerasrc sensor-id={number} ! video/x-raw(memory:NVMM),width={width},height={height},framerate={fps}/1 ! "
    "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
)


def device_source(spec: str, options: SourceOptions) -> Source:
    """'0', '/dev/video0', 'csi', 'csi:1' → an unopened source."""
    if spec.startswith("csi"):
        return OpenCvCamera(spec, import_cv2(f"--source {spec}"), options)
    try:
        return OpenCvCamera(spec, import_cv2(f"--source {spec}"), options)
    except MissingDependency:
        return V4l2Camera(spec, options)


def import_cv2(what: str) -> Any:
    """OpenCV, for `what`, as the error names it. Never a dependency: pip's would hide the one that JetPack brings."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # it warns about every camera number that is not there
    try:
        import cv2
    except ImportError as error:
        raise MissingDependency(f"{what}: OpenCV is not installed", OPENCV_HOW) from error
    return cv2


def has_gstreamer(cv2: Any) -> bool:
    """pip's OpenCV is built without GStreamer, which a CSI camera needs; JetPack's has it."""
    lines = [line for line in cv2.getBuildInformation().splitlines() if "GStreamer" in line]
    return any("YES" in line for line in lines)


def no_camera(spec: str) -> MissingDevice:
    found = ", ".join(sorted(glob.glob("/dev/video*"))) or "none"  # noqa: PTH207
    return MissingDevice(f"--source {spec}: no camera there (found: {found})", HOW)


class OpenCvCamera(Source):
    def __init__(self, spec: str, cv2: Any, options: SourceOptions) -> None:
        self.name = f"camera {spec}" if spec.isdigit() else spec
        self._spec, self._cv2, self._options = spec, cv2, options
        self._capture: Any = None
        self._lock = threading.Lock()  # releasing a capture that another thread reads crashes OpenCV
        self._closed = False
        if spec.startswith("csi") and not has_gstreamer(cv2):
            raise MissingDependency(f"--source {spec}: this OpenCV ({cv2.__file__}) has no GStreamer", GSTREAMER_HOW)

    def open(self) -> None:
        cv2, options = self._cv2, self._options
        with self._lock:
            if self._capture is not None:
                self._capture.release()
            if self._spec.startswith("csi"):
                number = self._spec.partition(":")[2] or "0"
                size = {"width": options.width or 1280, "height": options.height or 720, "fps": int(options.fps or 30)}
                self._capture = cv2.VideoCapture(CSI_PIPELINE.format(number=number, **size), cv2.CAP_GSTREAMER)
            else:
                self._capture = cv2.VideoCapture(int(self._spec) if self._spec.isdigit() else self._spec)
                wishes = {"WIDTH": options.width, "HEIGHT": options.height}
                for what, wish in wishes.items():
                    if wish:
                        self._capture.set(getattr(cv2, f"CAP_PROP_FRAME_{what}"), wish)
                if options.fps:
                    self._capture.set(cv2.CAP_PROP_FPS, options.fps)
                self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # old pictures in the driver's queue are lag
            if not self._capture.isOpened():
                raise no_camera(self._spec)

    def read(self) -> tuple[NDArray[np.uint8], float | None] | None:
        with self._lock:
            if self._closed:
                return None
            good, image = self._capture.read()
        if not good:
            raise SourceLost("the camera gives no picture")
        rgb: NDArray[np.uint8] = self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)
        return rgb, None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._capture is not None:
                self._capture.release()


class V4l2Camera(AvSource):
    def __init__(self, spec: str, options: SourceOptions) -> None:
        asked = {}
        if options.width and options.height:
            asked["video_size"] = f"{options.width}x{options.height}"
        if options.fps:
            asked["framerate"] = f"{options.fps:g}"
        self._spec = spec
        super().__init__(f"/dev/video{spec}" if spec.isdigit() else spec, format="v4l2", options=asked)

    def open(self) -> None:
        if not sys.platform.startswith("linux"):
            raise MissingDependency("a camera needs OpenCV on this system", OPENCV_HOW)
        super().open()

    def _absent(self, reason: str) -> DtkdEdgeError:
        return no_camera(self._spec)
