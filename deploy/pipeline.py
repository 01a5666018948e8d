"""Camera to label: grabber → sampler → inference, each in its thread, each taking the newest of what is before it.

    grabber    reads the source into one slot                                      (camera.py)
    sampler    takes the newest frame, scales and crops it into the sliding window  (window.py)
    inference  takes the newest clip, runs the model, smooths, decides              (smoothing.py)

So a slow model costs label rate and never lag: the age of a label is one inference and at most one wait for its frame.
A file that is read fast waits instead: each thread takes every frame, and the same file gives the same labels every time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dtkd_edge.deploy.camera import Frame, Grabber, Rate
from dtkd_edge.deploy.classifier import Classifier, Score
from dtkd_edge.deploy.live import Latencies, Live, Settings
from dtkd_edge.deploy.smoothing import Ema, Event, Gate
from dtkd_edge.deploy.window import Window, frame_spacing
from dtkd_edge.errors import DtkdEdgeError

MIN_FILLED = 0.5  # of the window, before the first label: a still start would be called a class otherwise
KEPT_EVENTS = 200
ROUNDING_S = 1e-3  # a frame that is due at its very time must not be passed over for the last digit of that time


class Pipeline:
    """One camera, one model. `listeners` are called in the inference thread with every Live and must return at once."""

    def __init__(self, classifier: Classifier, grabber: Grabber, settings: Settings | None = None) -> None:
        self.classifier, self.grabber = classifier, grabber
        self.settings = settings or Settings()
        self.listeners: list[Callable[[Live], None]] = []
        self.live: Live | None = None
        self.events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self.ages, self.inferences = Latencies(), Latencies()
        self.events_ended = 0
        self.error: DtkdEdgeError | None = None
        self.filled = 0.0
        self.label_rate = Rate()
        self._number = 0
        self.started: float | None = None
        manifest = classifier.artifact.manifest
        spacing = frame_spacing(manifest.preprocess.sampling, self.settings.clip_seconds)
        self._streaming = manifest.mode == "stream"
        self._late, self._lag = manifest.delay, manifest.delay * spacing  # a stream's label is about so many frames, seconds ago
        self._unborn = self._late  # labels to come that are about no frame of this source
        self._waits = grabber.source.waits
        # Seconds from one inference to the next, by the frames' time. A stream model counts frames: it is fed at its own rate.
        self._every = spacing if self._streaming else 0.0
        if self._waits and not self._streaming:
            self._every = 1 / self.settings.rate if self.settings.rate else spacing
        self._window = Window(1 if self._streaming else manifest.preprocess.sampling.frames, spacing)
        self._ema = Ema(self.settings.smoothing)
        self._gates = {head: Gate(self.settings.threshold, self.settings.released, head) for head in classifier.labels}
        self._newest: Frame | None = None  # of the window; None when its clip was taken
        self._sampled = False  # the last frame is in the window
        self._away = False  # no frame came for longer than a clip
        self._turned = {"sampler": time.monotonic(), "inference": time.monotonic()}
        self._news = threading.Condition()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guard, args=(work,), name=name, daemon=True)
            for name, work in (("sampler", self._sample), ("inference", self._infer))
        ]

    def start(self) -> None:
        """Raises what opening the source raises. The model runs once before, so that the first label is not a slow one."""
        self.warm_up()
        self.grabber.start()
        self._turned = dict.fromkeys(self._turned, time.monotonic())
        for thread in self._threads:
            thread.start()

    def warm_up(self) -> None:
        shape = [1, *self.classifier.artifact.manifest.input.shape[1:]]
        self.classifier.backend.run(np.zeros(shape, np.uint8))
        self.classifier.backend.reset()

    def stop(self, *, grabber: bool = True) -> None:
        """Stop and join all threads (grabber: its own too), and end the event that is on. Harmless when called again."""
        self._stop.set()
        if grabber:
            self.grabber.stop()
        with self._news:
            self._news.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(10)

    @property
    def running(self) -> bool:
        return self.error is None and any(thread.is_alive() for thread in self._threads)

    def stalled(self) -> float:
        """Seconds since the slowest of the three threads last came round. Well below 1 in health, whatever the source does; a
        source that cannot be reached costs its own time-outs, one that hangs grows without end."""
        now = time.monotonic()
        return max(now - turned for turned in self._pulse().values()) if self.running else 0.0

    def slowest(self) -> str:
        pulse = self._pulse()
        return min(pulse, key=pulse.__getitem__)

    def _pulse(self) -> dict[str, float]:
        grabber = self.grabber
        reading = grabber.running and not grabber.source.patient
        return {**self._turned, **({"grabber": grabber.turned} if reading else {})}

    @property
    def span(self) -> float:
        """Seconds from the first to the last frame of a clip."""
        return self._window.span

    def failure(self) -> DtkdEdgeError | None:
        return self.error or self.grabber.error

    def wait(self, timeout: float | None = None) -> bool:
        """Until the source ended, or something failed; False after the timeout."""
        return self._stop.wait(timeout)

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except DtkdEdgeError as error:
            self.error = error
        except Exception as error:
            self.error = DtkdEdgeError(f"live inference: {type(error).__name__}: {error}", "run it again with --debug")
        finally:
            if work == self._infer or self.error:
                self._stop.set()
            with self._news:
                self._sampled |= work == self._sample
                self._news.notify_all()

    def _sample(self) -> None:
        preprocess, patience = self.classifier.preprocess, max(self._window.span, 1.0)
        heard: float | None = None
        while not self._stop.is_set():
            self._turned["sampler"] = time.monotonic()
            running = self.grabber.running  # asked before: the last frame may come between the two lines
            frame = self.grabber.take()
            if frame is None:
                if not running:
                    return
                if heard is not None and not self._waits and time.monotonic() - heard > patience:
                    heard = None
                    with self._news:
                        self._away, self._newest = True, None  # what waits is from before the gap
                        self._news.notify_all()
                continue
            small = preprocess.frame(frame.image)
            with self._news:
                if self._waits:
                    self._news.wait_for(lambda: self._newest is None or self._stop.is_set())
                self._away |= heard is not None and frame.time - heard > patience
                heard = frame.time
                if self.started is None:
                    self.started = frame.time
                self._window.add(frame.time, small)
                self.filled = self._window.filled
                self._newest = frame
                self._news.notify_all()

    def _infer(self) -> None:
        last, due = None, 0.0
        try:
            while not self._stop.is_set():
                self._turned["inference"] = time.monotonic()
                with self._news:
                    self._news.wait_for(lambda: self._newest or self._away or self._stop.is_set() or self._sampled, 0.5)
                    away, self._away = self._away, False
                if away:
                    self._broke_off(last)
                    last = None
                with self._news:
                    frame, self._newest = self._newest, None
                    if frame is None:
                        if self._sampled:
                            return
                        continue
                    self._news.notify_all()
                    if self._every and frame.time < due - ROUNDING_S:
                        continue
                    if not self._streaming and self._window.filled < MIN_FILLED:
                        continue
                    clip = self._window.clip()
                due = max(due, frame.time - self._every / 2) + self._every
                last = frame.time
                self._step(clip, frame)
                if self.settings.rate and not self._waits:
                    self._pause(frame.captured + 1 / self.settings.rate)
        finally:
            self._finish(last)

    def _pause(self, until: float) -> None:
        while not self._away and (left := until - time.monotonic()) > 0 and not self._stop.wait(min(left, 0.5)):
            self._turned["inference"] = time.monotonic()

    def _step(self, clip: NDArray[np.uint8], frame: Frame) -> None:
        begin = time.monotonic()
        probabilities = self.classifier.predict_live(clip)
        end = time.monotonic()
        if self._unborn:
            self._unborn -= 1
            return
        at = self._at(frame.time)
        prediction = self.classifier.prediction(self._ema.update(probabilities, frame.time))
        begins, ends, held = [], [], dict[str, Score | None]()
        for head, scores in prediction.heads.items():
            gate = self._gates[head]
            before = gate.current
            ended = gate.update({s.label: s.score for s in scores}, at)
            ends += [ended] if ended else []
            begins += [gate.current] if gate.current and gate.current is not before else []
            held[head] = next((s for s in scores if gate.current and s.label == gate.current.label), None)
        self._remember(ends)
        now = held[prediction.main]
        age = time.monotonic() - frame.captured + self._lag
        self.ages.add(age)
        self.inferences.add(end - begin)
        self.label_rate.tick(end)
        self._number += 1
        for event in begins:
            event.wall = None if self._waits else time.time() - age
        live = Live(
            self._number, at, now.label if now else None, (now or prediction.top(1)[0]).score, prediction, age, end - begin,
            frame.stamp, held, tuple(replace(event) for event in begins), tuple(ends),  # an event that is on goes on changing
        )  # fmt: skip
        self._publish(live)

    def _at(self, time: float) -> float:
        """Seconds since the first frame of what a label is about that comes with a frame of that time."""
        return time - (self.started or 0.0) - self._lag

    def _publish(self, live: Live) -> None:
        with self._news:
            self.live = live
            self._news.notify_all()
        for listener in self.listeners:
            listener(live)

    def _broke_off(self, last: float | None) -> None:
        """The source was away for longer than a clip: nothing before it says anything about now."""
        self._ema.reset()
        self.classifier.backend.reset()
        self._unborn = self._late
        self._finish(last)

    def _finish(self, last: float | None) -> None:
        """End the events that are on, at the time of the last frame, and tell the listeners."""
        if self.live is None or last is None:
            return
        ends = [ended for gate in self._gates.values() if (ended := gate.close(self._at(last)))]
        if ends:
            self._remember(ends)
            self._number += 1  # a number of its own: who has seen the last label gets the end of its event too
            nothing: dict[str, Score | None] = dict.fromkeys(self._gates)
            self._publish(
                replace(self.live, seq=self._number, label=None, held=nothing, begins=(), ends=tuple(ends)),
            )

    def _remember(self, ended: list[Event]) -> None:
        self.events.extend(ended)
        self.events_ended += len(ended)

    def clock(self) -> float:
        """Seconds since the first frame; it stops with the source."""
        if self.started is None:
            return 0.0
        newest = self.grabber.latest()
        now = time.monotonic() if newest is None or (self.grabber.state == "live" and not self._waits) else newest.time
        return now - self.started

    def current(self) -> list[Event]:
        """The events that are on, one for each head at most."""
        # Read once: the model's thread may end it in between.
        return [event for gate in self._gates.values() if (event := gate.current) is not None]
