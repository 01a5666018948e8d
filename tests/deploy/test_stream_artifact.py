"""A streaming artefact: one frame at a time, with the state kept between the calls by the backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from deploy_cases import SIZE, write_counter, write_mp4

import dtkd_edge
from dtkd_edge.artifact import Artifact
from dtkd_edge.deploy.backends import open_backend
from dtkd_edge.errors import UsageError


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def counter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_counter(tmp_path_factory.mktemp("stream") / request.param, request.param)


def test_the_states_can_be_read(counter: Path) -> None:
    """By their names in the manifest, wherever the runtime keeps them."""
    with open_backend(Artifact.open(counter), device="cpu") as backend:
        assert {name: value.tolist() for name, value in backend.states.items()} == {"past": [[0.0, 0.0]]}
        for _ in range(3):
            backend.run(np.full((1, SIZE, SIZE, 3), 10, np.uint8))
        np.testing.assert_allclose(backend.states["past"], [[3, 30]], rtol=1e-5)


def test_the_state_goes_on_until_it_is_reset(counter: Path) -> None:
    with open_backend(Artifact.open(counter), device="cpu") as backend:
        for number in range(1, 5):
            out = backend.run(np.full((1, SIZE, SIZE, 3), 10, np.uint8))["action"]
            np.testing.assert_allclose(out, [[number, 10 * number]], rtol=1e-5)
        backend.reset()
        out = backend.run(np.zeros((1, SIZE, SIZE, 3), np.uint8))["action"]
        np.testing.assert_allclose(out, [[1, 0]])


def test_two_streams_at_once_or_fewer(tmp_path: Path) -> None:
    """An artefact of two streams takes one frame too (its other stream then idles), and clips in any number."""
    with open_backend(Artifact.open(write_counter(tmp_path / "two", "onnx", batch=2)), device="cpu") as backend:
        frames = np.stack([np.full((SIZE, SIZE, 3), light, np.uint8) for light in (1, 2, 3)])
        for number in (1, 2):
            assert backend.run(frames[:2])["action"].tolist() == [[number, number], [number, 2 * number]]
        backend.reset()
        assert backend.run(frames[2:])["action"].tolist() == [[1, 3]]
        with pytest.raises(UsageError, match="2 frames at once"):
            backend.run(frames)
        assert backend.run_clips(frames[:, None].repeat(4, 1))["action"].tolist() == [[4, 4], [4, 8], [4, 12]]


def test_every_clip_starts_from_nothing_and_its_last_frame_counts(counter: Path) -> None:
    clips = np.zeros((2, 8, SIZE, SIZE, 3), np.uint8)
    clips[1] = 1
    with dtkd_edge.load(counter, device="cpu") as classifier:
        out = classifier.predict_frames(clips)["action"]
    for row, logits in zip(out, ([8.0, 0.0], [8.0, 8.0]), strict=True):
        np.testing.assert_allclose(row, np.exp(logits) / np.exp(logits).sum(), rtol=1e-4)


def test_a_live_stream_is_fed_at_the_rate_of_the_clip(counter: Path, tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=60, size=(64, 64))
    with dtkd_edge.load(counter, device="cpu") as classifier:
        results = list(classifier.stream(str(video), clip_seconds=0.8, smoothing=0.0))  # 8 frames in 0.8 s: ten a second
    assert 3 < results[-1].seq <= 22  # of 60 frames in 2 s, and the end; a busy machine misses some of them
    steps = np.diff([live.time for live in results])
    assert np.median(steps) > 0.09


def test_a_file_read_fast_feeds_a_stream_at_the_same_rate(counter: Path, tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=60, size=(64, 64))
    with dtkd_edge.load(counter, device="cpu") as classifier:
        options = {"clip_seconds": 0.8, "smoothing": 0.0, "threshold": 1.0, "release": 1.0, "fast": True}
        one, two = ([(live.time, live.score) for live in classifier.stream(str(video), **options)] for _ in range(2))
    assert one == two
    *labels, end = [at for at, _ in one]  # the last one ends the event
    assert len(labels) == 20 and end == labels[-1]
    np.testing.assert_allclose(np.diff(labels), 0.1, atol=1e-6)


def test_a_rate_below_one_a_second_is_no_gap(counter: Path) -> None:
    """Frames come all the time; only labels are rare. What the model remembers stays."""
    with dtkd_edge.load(counter, device="cpu") as classifier:
        labels = classifier.stream("pattern", rate=0.8)
        counted = [float(classifier.backend.states["past"][0, 0]) for _ in zip(range(3), labels, strict=False)]
        labels.close()
    assert counted == [1, 2, 3]


def test_labels_that_lag_behind(tmp_path: Path) -> None:
    """A clip's last frame stands still until its label has come; live, the label is about the frames so long ago."""
    folder = write_counter(tmp_path / "late", "onnx", delay=3)
    video = write_mp4(tmp_path / "clip.mp4", frames=60, size=(64, 64))
    with dtkd_edge.load(folder, device="cpu") as classifier:
        frames = np.arange(1, 3, dtype=np.uint8)[None, :, None, None, None] * np.ones((1, 2, SIZE, SIZE, 3), np.uint8)
        assert classifier.backend.run_clips(frames)["action"].tolist() == [[5, 1 + 2 + 2 + 2 + 2]]
        assert "lag by 3 frames" in str(classifier)
        options = {"clip_seconds": 0.8, "smoothing": 0.0, "threshold": 1.0, "release": 1.0, "fast": True}
        times = [live.time for live in classifier.stream(str(video), **options)]
        assert len(times) == 17 + 1  # of 20 frames the first three labels are about nothing; the end of the event
        np.testing.assert_allclose(times[:-1], 0.1 * np.arange(17), atol=1e-6)
