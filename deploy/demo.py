"""`dtkd-edge demo`: one pipeline, one view, and an orderly end for each of its ways to end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dtkd_edge.console import counted, say
from dtkd_edge.deploy.camera import Grabber
from dtkd_edge.deploy.classifier import load_newest
from dtkd_edge.deploy.guard import is_loopback
from dtkd_edge.deploy.live import Live, Settings
from dtkd_edge.deploy.notify import Notifier
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.recorder import EventLog, Recorder
from dtkd_edge.deploy.session import Session, artifacts_beside, local_sources
from dtkd_edge.deploy.sources import SourceOptions, open_source
from dtkd_edge.deploy.webhook import Webhook
from dtkd_edge.errors import MissingDependency, MissingDevice, UsageError
from dtkd_edge.files import check_suffix
from dtkd_edge.fonts import say_boxes

VIEWS = ("web", "window", "none")
GOODBYE_S = 1.0  # the page learns of the end before the server goes


def demo(
    artifact: Path | None,
    *,
    source: str | list[str] = "0",
    view: str = "web",
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    record: Path | None = None,
    events: Path | None = None,
    webhook: str | None = None,
    webhook_hosts: list[str] | None = None,
    device: str = "auto",
    loop: bool | None = None,
    source_options: SourceOptions | None = None,
    settings: Settings | None = None,
) -> None:
    """Live labels of a source until it ends, or Ctrl-C or SIGTERM comes; recordings are finished in every case.

    source: the first one is shown, the page can switch to the others; to this machine's cameras and the test pattern
    too, while the page is on loopback and nothing is recorded.
    loop: play a file again and again; by default that is so in the web view when nothing is recorded and the file is not read
    fast. source_options.fast: a file as fast as it goes, with a label for each step of the clip and no frame dropped.
    """
    sources = [source] if isinstance(source, str) else list(source)
    _check_files(sources, record, events)
    if view not in VIEWS:
        raise UsageError(f"--view {view}: no such view", f"one of: {', '.join(VIEWS)}")
    if len(sources) > 1 and view != "web":
        raise UsageError(f"--source is given {len(sources)} times: only the page can switch", "give one, or use --view web")
    if "browser" in sources and view != "web":
        raise UsageError("--source browser needs --view web", "the page is the camera")
    options = source_options or SourceOptions()
    if loop is None:
        loop = view == "web" and record is None and events is None and not options.fast
    options = replace(options, loop=loop)
    if len(sources) > 1 and (record is not None or options.fast):
        raise UsageError("--record and --fast take one --source", "a recording is of one picture")
    grabber = Grabber(open_source(sources[0], options))
    hook = None if webhook is None else Webhook(webhook, hosts=webhook_hosts)
    with ExitStack() as stack, _signals() as stopped:
        classifier = stack.enter_context(load_newest([artifact] if artifact else [], device=device))
        pipeline = Pipeline(classifier, grabber, settings)
        session = _session(
            pipeline, sources, view, host, options, device, switch=record is None and not options.fast, guarded=token is not None
        )
        show = _VIEWS[view](session, stack, host, port, token, hook)
        if hook is not None:
            hook.about = session.about
            hook.start()
            pipeline.listeners.append(hook)
            stack.callback(hook.stop)
        if events is not None:
            log = EventLog(events, session.about)
            pipeline.listeners.append(log)
            stack.callback(log.close)
        if record is not None or view == "window":
            say_boxes(label for labels in classifier.labels.values() for label in labels)
        recorder = None if record is None else Recorder(record, pipeline)
        stack.callback(session.stop)  # callbacks run backwards: it ends the last event while the log is still open
        if recorder is not None:
            recorder.start()
            stack.callback(recorder.stop)
        begin = time.monotonic()
        session.start()
        say(str(classifier))
        notifier = Notifier(session)
        stack.callback(notifier.stop)
        show(stopped, notifier.start)
        notifier.stop()
        pipeline, grabber = session.pipeline, session.pipeline.grabber
        seconds, shown = time.monotonic() - begin, pipeline.clock()
    failure = pipeline.failure()
    if failure:
        raise failure
    ages = pipeline.ages
    if options.fast:
        did = f"{counted(grabber.grabbed, 'frame')}, {counted(ages.count, 'label')}"
        say(f"{did}: {shown:.1f} s of video in {seconds:.1f} s, {shown / seconds:.1f}×")
        return
    say(
        f"{counted(grabber.grabbed, 'frame')}, {grabber.dropped} dropped, {counted(ages.count, 'label')}, "
        f"age p50 {ages.percentile(50) * 1000:.0f} ms, p90 {ages.percentile(90) * 1000:.0f} ms"
    )


def _check_files(sources: list[str], record: Path | None, events: Path | None) -> None:
    """UsageError for a recording that is no mp4 by its name, and where a file would be written over one that is read, or over the
    other one that is written."""
    if record is not None:
        check_suffix("--record", record, ".mp4")
    taken = {f"--source {name}": Path(name) for name in sources}
    for option, path in (("--record", record), ("--events", events)):
        if path is None:
            continue
        for other, there in taken.items():
            if path.resolve() == there.resolve() or (path.is_file() and there.is_file() and path.samefile(there)):
                raise UsageError(f"{option} {path}: the same file as {other}", "give it another name")
        taken[f"{option} {path}"] = path


Show = Callable[[threading.Event, Callable[[], None]], None]  # (ends when this is set, to be called when all is up)


def _session(
    pipeline: Pipeline,
    sources: list[str],
    view: str,
    host: str,
    options: SourceOptions,
    device: str,
    *,
    switch: bool,
    guarded: bool,
) -> Session:
    """What the page may switch to. Where others than this machine's user may look on, no camera that was not named."""
    artifacts = None
    if view == "web" and switch:
        artifacts = artifacts_beside(pipeline.classifier.artifact.folder)
        if is_loopback(host) and not guarded:
            sources = list(dict.fromkeys([*sources, *local_sources()]))
    return Session(pipeline, sources=sources, artifacts=artifacts, options=options, device=device)


def _web(session: Session, stack: ExitStack, host: str, port: int, token: str | None, hook: Webhook | None) -> Show:
    from dtkd_edge.deploy.server import WebView

    web = WebView(session, host, port, token=token, webhook=hook)

    def show(stopped: threading.Event, ready: Callable[[], None]) -> None:
        web.start()
        ready()
        stack.callback(web.stop)
        say(f"open {web.url}   (Ctrl-C ends it)")
        if web.token:
            say("anybody with this address sees the picture; the connection is not encrypted")
        while not stopped.is_set() and not session.wait(0.2):
            pass
        if not stopped.is_set() and web.viewers:
            time.sleep(GOODBYE_S)

    return show


def _none(session: Session, *_: Any) -> Show:
    """A line on standard error whenever the label changes, for services and pipes."""
    pipeline = session.pipeline
    last: list[list[str]] = [[]]

    def line(live: Live) -> None:
        labels = [certain.label for certain in live.certain]
        if labels != last[0] or (live.ends and not labels):
            last[0] = labels
            words = " · ".join(f"{certain.label} {certain.score:.0%}" for certain in live.certain) or "-"
            late = f"  (age {live.age * 1000:.0f} ms, {pipeline.grabber.fps:.0f} fps)"
            say(f"{live.time:8.2f} s  {words}{'' if pipeline.grabber.source.waits else late}")

    pipeline.listeners.append(line)

    def show(stopped: threading.Event, ready: Callable[[], None]) -> None:
        ready()
        while not stopped.is_set() and not pipeline.wait(0.2):
            pass

    return show


def _window(session: Session, *_: Any) -> Show:
    pipeline = session.pipeline
    from dtkd_edge.deploy import overlay
    from dtkd_edge.deploy.sources.device import OPENCV_HOW, import_cv2

    cv2 = import_cv2("--view window")
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise MissingDevice("--view window: no display here (DISPLAY is not set)", "use --view web and open its address")
    gui = [line for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")]
    if any("NONE" in line for line in gui):
        raise MissingDependency("--view window: this OpenCV has no windows (headless)", f"use --view web; or {OPENCV_HOW}")
    _systems_x11()
    title = "dtkd-edge (q ends it)"

    def show(stopped: threading.Event, ready: Callable[[], None]) -> None:
        ready()
        seen = 0
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)  # Qt's own has a toolbar
        while not stopped.is_set() and not pipeline.wait(0):
            frame = pipeline.grabber.latest()
            if frame is not None and frame.index != seen:
                if not seen:
                    cv2.resizeWindow(title, frame.image.shape[1], frame.image.shape[0])
                seen = frame.index
                picture = overlay.draw(frame.image, pipeline.live, pipeline.grabber.fps)
                cv2.imshow(title, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            if cv2.waitKey(10) & 0xFF in (ord("q"), 27) or (seen and cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1):
                return
        cv2.destroyAllWindows()

    return show


def _systems_x11() -> None:
    """Load the system's libX11-xcb before Qt does its own.

    OpenCV's wheels bring one that is older than today's libX11 and sets the owner of the events where that has another field.
    Xlib then takes events from Qt now and then, on a busy machine the window's very first, and it stays black for good.
    """
    with suppress(OSError):
        ctypes.CDLL("libX11-xcb.so.1", mode=ctypes.RTLD_GLOBAL)


_VIEWS: dict[str, Callable[..., Show]] = {"web": _web, "window": _window, "none": _none}


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event, so that files are finished; a second one ends the program at once."""
    stopped = threading.Event()

    def handler(number: int, _: Any) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, old in before.items():
            signal.signal(number, old)
