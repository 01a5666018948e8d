"""Sources, window, smoothing and the threaded pipeline, on real files and the drawn pattern."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from deploy_cases import until, write_colours, write_film, write_mp4
from hypothesis import given
from hypothesis import strategies as st

import dtkd_edge
from dtkd_edge.deploy.camera import Grabber, Source, SourceLost
from dtkd_edge.deploy.live import Settings
from dtkd_edge.deploy.page import to_jpeg
from dtkd_edge.deploy.pipeline import Pipeline
from dtkd_edge.deploy.recorder import Recorder
from dtkd_edge.deploy.smoothing import Ema, Gate
from dtkd_edge.deploy.sources import SourceOptions, open_source
from dtkd_edge.deploy.sources import av as av_sources
from dtkd_edge.deploy.sources.pattern import MOTIONS, SEGMENT_S, draw, motion_at
from dtkd_edge.deploy.window import Window, frame_spacing
from dtkd_edge.errors import InputError, MissingDependency, MissingDevice, UsageError
from dtkd_edge.preprocess import Sampling
from dtkd_edge.video import Video


def image(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value % 256, np.uint8)


# --- the window -------------------------------------------------------------------------------------------------------


@given(st.integers(2, 16), st.floats(0.02, 0.5), st.lists(st.floats(0.001, 0.2), min_size=1, max_size=200))
def test_a_clip_is_the_nearest_frames_that_end_with_the_newest(frames: int, spacing: float, gaps: list[float]) -> None:
    window = Window(frames, spacing)
    times = np.cumsum(gaps)
    for i, t in enumerate(times):
        window.add(float(t), image(i))
    ring = np.array([t for t, _ in window._ring])
    got = ring[window.picks()]
    want = times[-1] - spacing * np.arange(frames - 1, -1, -1)
    assert got[-1] == times[-1] and (np.diff(got) >= 0).all()
    nearest_of_all = np.abs(times[None] - want[:, None]).min(1)  # thinning the ring lost nothing
    np.testing.assert_allclose(np.abs(got - want), nearest_of_all, atol=1e-9)
    assert window.clip().shape == (frames, 4, 4, 3)


def test_the_window_forgets_after_a_gap_and_after_a_change_of_shape() -> None:
    window = Window(4, 0.25)
    for i in range(30):
        window.add(i / 10, image(i))
    assert window.filled == pytest.approx(1)
    window.add(10.0, image(99))
    assert window.filled == 0 and (window.clip() == 99).all()


def test_the_clip_spans_what_a_training_clip_spans() -> None:
    assert frame_spacing(Sampling(kind="uniform", frames=8)) == 0.25
    assert frame_spacing(Sampling(kind="uniform", frames=8), 4.0) == 0.5
    assert frame_spacing(Sampling(kind="dense", frames=16, stride=4, fps=20)) == pytest.approx(0.2)
    with pytest.raises(UsageError, match="clip-seconds"):
        frame_spacing(Sampling(), 0)


# --- smoothing --------------------------------------------------------------------------------------------------------


@given(st.floats(0.05, 3), st.integers(1, 60))
def test_the_average_depends_on_time_and_not_on_the_rate(tau: float, steps: int) -> None:
    ema = Ema(tau)
    ema.update({"action": np.array([1.0, 0.0], np.float32)}, 0.0)
    for i in range(steps):
        out = ema.update({"action": np.array([0.0, 1.0], np.float32)}, (i + 1) / steps)["action"]
    np.testing.assert_allclose(out, [np.exp(-1 / tau), 1 - np.exp(-1 / tau)], atol=1e-4)


def test_hysteresis() -> None:
    gate = Gate(0.6, 0.4)
    events = []
    for t, p in enumerate([0.5, 0.59, 0.61, 0.45, 0.41, 0.55, 0.39, 0.5, 0.7]):
        ended = gate.update({"a": p, "b": 0.3}, float(t))
        events += [ended] if ended else []
    assert [(e.label, e.start, e.end, e.score) for e in events] == [("a", 2.0, 6.0, 0.61)]
    assert gate.current and gate.current.start == 8.0
    ended = gate.update({"a": 0.5, "b": 0.65}, 9.0)  # another label takes over without a gap
    assert ended and ended.end == 9.0 and gate.current.label == "b"


@given(st.lists(st.floats(0, 1), max_size=60), st.floats(0, 1), st.floats(0, 1))
def test_events_never_overlap_and_always_passed_the_threshold(scores: list[float], one: float, two: float) -> None:
    gate = Gate(max(one, two), min(one, two))
    ended = [e for t, p in enumerate(scores) if (e := gate.update({"a": p, "b": 1 - p}, float(t)))]
    last = gate.close(float(len(scores)))
    ended += [last] if last else []
    for event in ended:
        assert event.end is not None and event.start < event.end and event.score >= gate.threshold
    assert all(a.end is not None and a.end <= b.start for a, b in pairwise(ended))


# --- sources ----------------------------------------------------------------------------------------------------------


def test_the_pattern_is_the_same_every_time_and_shows_every_motion() -> None:
    for i, motion in enumerate(MOTIONS):
        middle = (i + 0.5) * SEGMENT_S
        assert motion_at(middle) == motion
        assert (draw(middle, 64, 48) == draw(middle, 64, 48)).all()
        assert (draw(middle, 64, 48) != draw(middle + 0.5, 64, 48)).any()

    def centre(seconds: float) -> float:
        bright = draw(seconds, 240, 240)[..., 0].astype(float) > 150
        return float(bright.nonzero()[1].mean())

    assert centre(1.0) < centre(0.5)  # left first


def test_a_file_plays_at_its_own_speed_and_ends(tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=30, size=(64, 48))
    grabber = Grabber(open_source(str(video)))
    begin = time.monotonic()
    grabber.start()
    taken = 0
    while grabber.running:
        taken += grabber.take(1.0) is not None
    assert time.monotonic() - begin > 0.8
    assert grabber.state == "ended" and 0 < grabber.grabbed <= 30
    assert grabber.grabbed - 1 <= taken + grabber.dropped <= grabber.grabbed


def test_a_file_gives_a_frame_at_its_time_and_skips_what_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only a wait for a frame, and this test, move on."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(av_sources, "time", clock)
    source = open_source(str(write_mp4(tmp_path / "clip.mp4", frames=120, size=(64, 48))))

    def wait(seconds: float) -> bool:
        clock.now += seconds
        return False

    monkeypatch.setattr(source._closed, "wait", wait)
    source.open()
    times = []

    def read(count: int) -> None:
        for _ in range(count):
            assert source.read() is not None
            times.append((clock.now - 100) * 30)

    read(30)
    np.testing.assert_allclose(times, np.arange(30), atol=1e-6)
    clock.now += 15.3 / 30
    read(5)  # frames 42, 43 and 44, less than a tenth of a second late, at once; then 45 and 46
    np.testing.assert_allclose(times[30:], [44.3, 44.3, 44.3, 45, 46], atol=1e-6)
    clock.now += 10  # as after a suspend: it goes on from there, at its own speed, without racing after it
    read(10)
    np.testing.assert_allclose(times[35:], 347 + np.arange(10), atol=1e-6)
    left = 0
    while source.read() is not None:
        left += 1
    assert left == 120 - 58  # frame 47 told that it was late
    source.close()


def test_a_looped_file_goes_on(tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=6, size=(64, 48))
    grabber = Grabber(open_source(str(video), SourceOptions(loop=True)))
    grabber.start()
    assert until(lambda: grabber.take() is not None and grabber.grabbed >= 20)
    grabber.stop()
    assert not grabber._thread.is_alive()


def test_what_nobody_takes_is_dropped_and_the_newest_is_kept() -> None:
    grabber = Grabber(open_source("pattern", SourceOptions(width=32, height=32, fps=100)))
    grabber.start()
    assert until(lambda: grabber.dropped > 10)
    grabber.stop()
    frame = grabber.take()
    assert frame is not None and frame.index == grabber.grabbed
    assert grabber.dropped == frame.index - 1


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    for spec, kind in [
        ("97", MissingDevice), ("/dev/video97", MissingDevice), ("rtsp://127.0.0.1:9/x", MissingDevice),
        (str(tmp_path / "absent.mp4"), InputError), (str(tmp_path / "text.mp4"), InputError),
        (str(tmp_path / "empty.mp4"), InputError), ("gopher://x", UsageError), ("csi", (MissingDependency, MissingDevice)),
    ]:  # fmt: skip
        with pytest.raises(kind) as caught:
            open_source(spec).open()
        named = (
            "gopher" if spec.startswith("gopher") else spec.split("/")[-1][:3]
        )  # of an address only its kind: it may hold a password
        assert named in caught.value.message and caught.value.hint


class Flaky(Source):
    """Breaks off every few pictures and needs several attempts to come back."""

    name = "flaky"

    def __init__(self) -> None:
        self.reads = self.opens = 0

    def open(self) -> None:
        self.opens += 1
        if self.opens % 3 == 0:
            raise MissingDevice("not yet")

    def read(self) -> tuple[np.ndarray, None] | None:
        self.reads += 1
        if self.reads % 5 == 0:
            raise SourceLost("gone")
        return (image(self.reads), None) if self.reads < 20 else None

    def close(self) -> None: ...


def test_a_source_that_breaks_off_is_opened_again() -> None:
    grabber = Grabber(Flaky(), backoff=(0.01, 0.05))
    grabber.start()
    assert until(lambda: not grabber.running)
    assert grabber.reconnects >= 3 and grabber.grabbed >= 16 and grabber.error is None


# --- the pipeline -----------------------------------------------------------------------------------------------------


def test_live_labels_of_a_file(onnx_artifact: Path, tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=75, size=(64, 48))
    with dtkd_edge.load(onnx_artifact, device="cpu", threads=1) as classifier:
        results = list(classifier.stream(str(video), clip_seconds=1.0, smoothing=0.0, threshold=0.0, release=0.0))
    assert len(results) > 3
    assert [r.seq for r in results] == sorted({r.seq for r in results})
    *labelled, end = results
    assert all(r.label in classifier.labels["action"] for r in labelled)
    assert end.label is None and end.ended is not None  # the file's end ends the event
    assert results[0].time >= 7 / 8 * 0.5 - 1e-6  # half of the window, and not less
    assert all(0 < r.inference <= r.age for r in results)


def test_every_step_of_a_file_that_is_read_fast(onnx_artifact: Path, tmp_path: Path) -> None:
    """A slow consumer gets every label, and every clip is made of the frames that lie at its steps."""
    video = write_mp4(tmp_path / "clip.mp4", frames=90, size=(64, 48))
    with dtkd_edge.load(onnx_artifact, device="cpu", threads=1) as classifier:
        seen: list[np.ndarray] = []
        predict = classifier.predict_live
        classifier.predict_live = lambda clip: (seen.append(clip), predict(clip))[1]  # type: ignore[method-assign]
        times = []
        for live in classifier.stream(str(video), fast=True, clip_seconds=0.8, threshold=0.0, release=0.0):
            times.append(live.time)
            time.sleep(0.005)
        frames = [classifier.preprocess.frame(f) for f in Video(video).read(np.arange(90))]
    *labels, end = times
    assert end == labels[-1] and len(seen) == len(labels)
    np.testing.assert_allclose(np.diff(labels)[1:], 0.1, atol=1e-6)
    assert 0.35 <= labels[0] <= 0.45 and labels[-1] > 2.85
    for clip, at in zip(seen[8:], labels[8:], strict=True):
        newest = round(at * 30)
        wanted = np.stack([frames[newest - 3 * back] for back in range(7, -1, -1)])
        assert np.abs(clip.astype(int) - wanted).mean() < 3  # two decoders


def test_a_slow_reader_misses_labels_and_no_event(tmp_path: Path) -> None:
    """A film of three colours, played once; the reader sleeps longer than a scene lasts."""
    film = write_film(tmp_path / "film.mp4", seconds=0.8)
    with dtkd_edge.load(write_colours(tmp_path / "colours"), device="cpu") as classifier:
        began, ended, labels = [], [], 0
        for live in classifier.stream(str(film), clip_seconds=0.2, smoothing=0.0):
            labels += 1
            began += [live.began.label] if live.began else []
            ended += [live.ended.label] if live.ended else []
            time.sleep(1.0)
    assert began == ended == ["red", "green", "blue"] and labels < 12  # of 24 frames


class Gone(Source):
    """Pictures until it is `gone`, then nothing more."""

    name = "gone"
    gone = False

    def open(self) -> None:
        if self.gone:
            raise MissingDevice("gone")

    def read(self) -> tuple[np.ndarray, None]:
        time.sleep(1 / 30)
        if self.gone:
            raise SourceLost("gone")
        return image(0), None

    def close(self) -> None: ...


def test_no_label_of_a_picture_from_before_the_loss(onnx_artifact: Path) -> None:
    """Labels are rarer than the camera's end: the pictures that still wait then are not labelled after it."""
    with dtkd_edge.load(onnx_artifact, device="cpu", threads=1) as classifier:
        settings = Settings(clip_seconds=0.2, smoothing=0.0, threshold=0.0, rate=0.2)
        source = Gone()
        pipeline = Pipeline(classifier, Grabber(source), settings)
        pipeline.start()
        try:
            assert until(pipeline.current)
            labelled, seen = time.monotonic(), pipeline.grabber.grabbed
            assert until(lambda: pipeline.grabber.grabbed > seen + 3)  # pictures that wait for the second label
            source.gone = True
            assert until(lambda: not pipeline.current())  # after the patience of one second
            time.sleep(max(labelled + 5.5 - time.monotonic(), 0.5))  # past the time of the second label
            assert not pipeline.current() and len(pipeline.events) == 1 and pipeline.inferences.count == 1
        finally:
            pipeline.stop()


def test_stopping_leaves_no_thread_and_ends_the_event(onnx_artifact: Path) -> None:
    before = threading.active_count()
    with dtkd_edge.load(onnx_artifact, device="cpu", threads=1) as classifier:
        settings = Settings(clip_seconds=0.5, threshold=0.0, release=0.0)
        pipeline = Pipeline(classifier, Grabber(open_source("pattern")), settings)
        pipeline.start()
        assert until(lambda: pipeline.inferences.count >= 5)
        assert pipeline.current()
        pipeline.stop()
        assert not pipeline.current() and pipeline.events[-1].end is not None
        assert pipeline.failure() is None and not pipeline.running
    assert threading.active_count() == before


def test_a_model_that_fails_ends_the_run_with_its_error(onnx_artifact: Path) -> None:
    with dtkd_edge.load(onnx_artifact, device="cpu", threads=1) as classifier:
        pipeline = Pipeline(classifier, Grabber(open_source("pattern")), Settings(clip_seconds=0.3))
        pipeline.start()
        classifier.backend.close()
        assert pipeline.wait(60)
        pipeline.stop()
        assert pipeline.failure() is not None and "live inference" in str(pipeline.failure())


def test_settings_are_checked() -> None:
    for wrong in ({"threshold": 0.2, "release": 0.5}, {"threshold": 1.5}, {"smoothing": -1}, {"rate": 0}):
        with pytest.raises(UsageError):
            Settings(**wrong)
    assert Settings(threshold=0.2).released == pytest.approx(0.14) and Settings(release=0.1).released == 0.1


class Still(Source):
    """The same few pictures, which nobody may write to."""

    name = "still"

    def __init__(self) -> None:
        self.pictures = [draw(at, 160, 120) for at in range(4)]
        for picture in self.pictures:
            picture.flags.writeable = False
        self.reads = 0

    def open(self) -> None: ...

    def read(self) -> tuple[np.ndarray, None]:
        time.sleep(0.02)
        self.reads += 1
        return self.pictures[self.reads % 4], None

    def close(self) -> None: ...


def test_a_picture_is_handed_on_and_never_copied_or_written_to(onnx_artifact: Path, tmp_path: Path) -> None:
    """From the source through the slot to recorder, page and sampler: the very array that the source gave."""
    source = Still()
    given = {id(picture) for picture in source.pictures}
    handed: list[int] = []
    with dtkd_edge.load(onnx_artifact, device="cpu", threads=1) as classifier:
        pipeline = Pipeline(classifier, Grabber(source), Settings(clip_seconds=0.4, threshold=0.0, release=0.0))
        recorder = Recorder(tmp_path / "out.mp4", pipeline)
        pipeline.grabber.listeners.append(lambda frame: handed.append(id(frame.image)))
        recorder.start()
        pipeline.start()
        assert until(lambda: min(pipeline.inferences.count, recorder.written, len(handed)) >= 10)
        newest = pipeline.grabber.latest().image  # what the page encodes
        to_jpeg(newest)
        handed.append(id(newest))
        pipeline.stop()
        recorder.stop()
        assert pipeline.failure() is None and pipeline.inferences.count >= 10 and recorder.written >= 10
        assert len(handed) > 10 and set(handed) == given


def test_a_decoded_picture_is_the_decoders_own_memory(tmp_path: Path) -> None:
    """The change of colour space is the one pass over the picture; what it wrote is what everybody reads."""
    source = open_source(str(write_mp4(tmp_path / "clip.mp4", frames=3, size=(96, 64))))
    source.open()
    read = source.read()
    assert read is not None and read[0].shape == (64, 96, 3) and not read[0].flags.owndata
    source.close()
