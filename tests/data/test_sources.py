"""Videos of variable rate, turned videos, videos shorter than a clip, and folders of raw frames."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import official_trees as trees
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_videos import pattern
from PIL import Image

from dtkd_edge.data.catalogue import Catalogue
from dtkd_edge.data.dataset import ClipDataset
from dtkd_edge.errors import VideoError
from dtkd_edge.frames import FrameFolder, FrameRange
from dtkd_edge.preprocess import Preprocess, Sampling
from dtkd_edge.recipe import AugmentConfig
from dtkd_edge.video import Video, read_clip, read_input

FIXTURES = Path(__file__).parents[2].parent / "shared/data/fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="real clips are not here")


def levels(frames: np.ndarray) -> list[int]:
    """Which frame of `numbered_video` (step 4) or `variable_rate` (step 10) each one is, in grey levels."""
    return np.rint(frames.astype(float).mean((1, 2, 3))).astype(int).tolist()


def shown_at(seconds: np.ndarray) -> list[int]:
    """By definition of variable_rate: ten frames of 0.1 s, then ten of 0.3 s."""
    return [int(t / 0.1 + 1e-6) if t < 1 - 1e-6 else 10 + int((t - 1) / 0.3 + 1e-6) for t in seconds]


# --- variable rate ---------------------------------------------------------------------------------------------------------


def test_variable_rate_is_read_by_time(tmp_path: Path) -> None:
    path = trees.variable_rate(tmp_path / "v.mp4")
    with av.open(str(path)) as container:
        times = [round(float(frame.time or 0), 3) for frame in container.decode(video=0)]
    assert times[9:12] == [0.9, 1.0, 1.3]  # the file is what the test takes it for
    video = Video(path)
    assert len(video) == 20
    assert video.fps == pytest.approx(20 / video.duration) and 3.7 < video.duration < 4.1
    seconds = np.arange(20) / video.fps
    got = np.rint(np.array(levels(video.read(np.arange(20)))) / 10).astype(int)
    assert np.abs(got - shown_at(seconds)).max() == 0
    each = np.rint(np.array(levels(video.read(np.arange(20), lambda frame: frame))) / 10).astype(int)
    assert (each == got).all()


def test_parts_of_a_variable_rate_video_are_cut_by_time(tmp_path: Path) -> None:
    path = trees.variable_rate(tmp_path / "v.mp4")
    clip = read_clip(path, Sampling(frames=4), start=1.0, end=4.0)
    numbers = np.rint(np.array(levels(clip)) / 10)
    assert (numbers >= 10).all()  # by count of frames, the first of them would be frame 5
    dense = read_clip(path, Sampling(kind="dense", frames=4, stride=1, fps=2), start=0.0, end=2.0)
    numbers = np.rint(np.array(levels(dense)) / 10)  # half a second apart: 5 frames in the first second, 1 or 2 in the second
    assert numbers[1] - numbers[0] >= 4 and numbers[3] - numbers[2] <= 2


@pytest.mark.parametrize("rate", [1, 10, 24, 30])
def test_a_constant_rate_is_left_as_it_is(tmp_path: Path, rate: int) -> None:
    trees.numbered_video(tmp_path / "v.mp4", 12, rate)
    video = Video(tmp_path / "v.mp4")
    assert video.fps == pytest.approx(rate)
    assert np.abs(np.array(levels(video.read(np.arange(12)))) - 4 * np.arange(12)).max() <= 1


@needs_fixtures
@pytest.mark.parametrize("name", ["test.avi", "demo.mp4", "flipping_a_pancake.mkv", "h265_video.mp4", "av1_video.mkv"])
def test_real_videos_of_constant_rate_keep_their_frames(name: str) -> None:
    video = Video(FIXTURES / name)
    with av.open(str(FIXTURES / name)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number == min(7, len(video) - 1):
                wanted = frame.to_ndarray(format="rgb24")
                break
    assert np.abs(video.read(np.array([number]))[0].astype(int) - wanted).mean() < 2


# --- rotation -------------------------------------------------------------------------------------------------------------


@needs_fixtures
def test_rotation_metadata_is_honoured() -> None:
    path = FIXTURES / "video_90.mov"
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    coded = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    assert coded.shape[1:3] == (320, 568) and frames[0].rotation == -90  # to be turned clockwise by a quarter
    upright = np.rot90(coded, 3, axes=(1, 2))
    video = Video(path)
    assert video.read(np.arange(3)).shape[1:3] == (568, 320)
    assert np.abs(video.read(np.arange(3)).astype(int) - upright).max() <= 2
    wanted = Preprocess(resize_short=64, crop=64, sampling=Sampling(frames=3))
    assert np.abs(read_input(path, wanted)[0].astype(int) - wanted.frames(upright)).max() <= 2


# --- short videos ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
def test_a_video_shorter_than_the_clip_repeats_its_frames(tmp_path: Path, raw: bool) -> None:
    """Dense sampling holds the last frame (PySlowFast); uniform segments repeat each (TSM)."""
    trees.numbered_video(tmp_path / "v.mp4", 3, 10)
    source: Video | FrameFolder = Video(tmp_path / "v.mp4")
    if raw:
        for i in range(3):
            picture = Image.fromarray(np.full((32, 32, 3), 4 * i, np.uint8))
            picture.save(tmp_path / f"img_{i + 1:05d}.png")
        source = FrameFolder(tmp_path / "img_%05d.png", FrameRange(1, 3, 10))
    for sampling, wanted in (
        (Sampling(kind="dense", frames=6, stride=1), [0, 4, 8, 8, 8, 8]),
        (Sampling(kind="dense", frames=6, stride=2), [0, 8, 8, 8, 8, 8]),
        (Sampling(frames=6), [0, 0, 4, 4, 8, 8]),
    ):
        assert np.abs(np.array(levels(read_clip(source, sampling))) - wanted).max() <= 1


# --- raw frames -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.lists(st.integers(0, 11), min_size=1, max_size=8))
def test_raw_frames_are_those_of_the_files(tmp_path_factory: pytest.TempPathFactory, first: int, numbers: list[int]) -> None:
    folder = tmp_path_factory.getbasetemp() / "frames"
    if not folder.is_dir():
        folder.mkdir()
        for i, frame in enumerate(pattern(24, 16, 20)):
            Image.fromarray(frame).save(folder / f"f{i:03d}.png")
    source = FrameFolder(folder / "f%03d.png", FrameRange(first, 12, 25))
    wanted = pattern(24, 16, 20)[np.array(numbers) + first]
    np.testing.assert_array_equal(source.read(np.array(numbers)), wanted)
    np.testing.assert_array_equal(source.read(np.array(numbers), lambda frame: frame[::2]), wanted[:, ::2])


def test_a_folder_without_a_count_is_counted(tmp_path: Path) -> None:
    trees.raw_frames(tmp_path / "a", "img_%05d.jpg", 7, first=0)
    (tmp_path / "a/img_thumb.jpg").write_bytes(b"")
    source = FrameFolder(tmp_path / "a/img_%05d.jpg", FrameRange(1, 0, 30))
    assert (len(source), source.first, source.duration) == (7, 0, pytest.approx(7 / 30))
    assert source.span(0.1, 0.2) == (3, 3)


def test_raw_frames_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"none: no such folder of frames"):
        FrameFolder(tmp_path / "none/img_%05d.jpg", FrameRange(1, 0, 30))
    with pytest.raises(VideoError, match=r"frame_%010d\.jpg: no frame of that name"):
        FrameFolder(trees.raw_frames(tmp_path / "a", "img_%05d.jpg", 3) / "frame_%010d.jpg", FrameRange(1, 0, 30))
    source = FrameFolder(tmp_path / "a/img_%05d.jpg", FrameRange(1, 5, 30))
    with pytest.raises(VideoError, match=r"img_00004\.jpg: no such frame"):
        source.read(np.array([3]))
    with pytest.raises(VideoError, match=r"frame 5 asked for, it has 5"):
        source.read(np.array([5]))
    Image.new("RGB", (10, 10)).save(tmp_path / "a/img_00002.jpg")
    with pytest.raises(VideoError, match="its frames have different sizes"):
        source.read(np.array([0, 1]))
    (tmp_path / "a/img_00002.jpg").write_bytes((tmp_path / "a/img_00001.jpg").read_bytes()[:300])
    with pytest.raises(VideoError, match=r"img_00002\.jpg: not a picture"):
        source.read(np.array([1]))


def test_grey_pictures_are_read_as_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(tmp_path / "1.png")
    frames = FrameFolder(tmp_path / "%d.png", FrameRange(1, 1, 30)).read(np.array([0]))
    assert frames.shape == (1, 8, 8, 3) and (frames == 77).all()


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_training_and_evaluation_read_raw_frames_as_they_read_videos(tmp_path: Path, cache_mb: int) -> None:
    """The same pictures, once as lossless frames and once as such a video, give the same batches."""
    frames = np.repeat(np.arange(20, dtype=np.uint8) * 12, 32 * 32 * 3).reshape(20, 32, 32, 3)
    for i, frame in enumerate(frames):
        (tmp_path / "f").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / f"f/{i + 1}.png")
    from dtkd_edge.data.motion import write_video

    write_video(tmp_path / "v.mp4", frames, 10, crf=0)
    label, names = {"action": np.array([0])}, {"action": ["a"]}
    video = Catalogue("x", tmp_path, ["v.mp4"], label, names, times=np.array([[0.4, 1.6]]))
    raw = Catalogue("x", tmp_path, ["f/%d.png"], label, names, frames=np.array([[5, 12]]), rates=np.array([10.0]))
    for augment in (None, AugmentConfig()):
        for sampling in (Sampling(frames=6), Sampling(kind="dense", frames=4, stride=2, fps=8)):
            got = []
            for catalogue in (video, raw):
                data = ClipDataset(
                    catalogue, sampling=sampling, size=24, resize_short=24, augment=augment, seed=1, cache_mb=cache_mb
                )
                got.append([data[0]["frames"].numpy().astype(int) for _ in range(2)])
            assert np.abs(np.array(got[0]) - np.array(got[1])).max() <= 3
