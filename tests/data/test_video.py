"""Reading real files through the real decoder."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from made_videos import numbers_shown, pattern, write_numbered, zero_frames

from dtkd_edge import video as module
from dtkd_edge.data.motion import write_video
from dtkd_edge.decoder import EXTENSIONS
from dtkd_edge.errors import VideoError
from dtkd_edge.preprocess import Preprocess, Sampling
from dtkd_edge.video import Video, read_clip, read_input

FIXTURES = Path(__file__).parents[2].parent / "shared/data/fixtures"
B_FRAMES = {"g": "12", "bf": "2"}
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="real clips are not here")


def by_pyav(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("width", [16, 24, 32, 34, 40, 48, 64, 96, 98, 144, 170, 192])
def test_frames_are_those_of_another_decoder(tmp_path: Path, width: int) -> None:
    """Widths that divide decord's padded rows need a way round its count of channels."""
    path = tmp_path / "v.mp4"
    write_video(path, pattern(12, 32, width), 10)
    reference = by_pyav(path)
    video = Video(path)
    assert len(video) == 12
    assert video.fps == pytest.approx(10)
    assert video.duration == pytest.approx(1.2)
    for numbers in ([0, 5, 11], [7], [3, 3, 9, 1], [11, 0]):
        frames = video.read(np.array(numbers))
        assert frames.shape == (len(numbers), 32, width, 3)
        assert np.abs(frames.astype(int) - reference[numbers]).max() <= 2


def test_frames_outside_the_file(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", pattern(4, 32, 34), 10)
    with pytest.raises(VideoError, match="frame 4 asked for, it has 4"):
        Video(tmp_path / "v.mp4").read(np.array([4]))


def test_views(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", pattern(20, 40, 80), 10)
    preprocess = Preprocess(resize_short=32, crop=32, sampling=Sampling(frames=4))
    clips = read_input(tmp_path / "v.mp4", preprocess, temporal_views=2, spatial_views=3)
    assert clips.shape == (6, 4, 32, 32, 3)
    numbers = preprocess.sampling.indices(20, views=2)
    frames = by_pyav(tmp_path / "v.mp4")[numbers[1]]
    assert np.abs(clips[5].astype(int) - preprocess.frames(frames, 2, 3)).max() <= 2


@pytest.mark.parametrize(
    ("start", "end", "span"),
    [
        (None, None, (0, 20)),
        (0.5, None, (5, 15)),
        (None, 1.0, (0, 10)),
        (0.5, 0.5, (5, 1)),
        (9.0, None, (19, 1)),
        (1.0, 99, (10, 10)),
    ],
)
def test_span(tmp_path: Path, start: float | None, end: float | None, span: tuple[int, int]) -> None:
    write_video(tmp_path / "v.mp4", pattern(20, 32, 34), 10)
    assert Video(tmp_path / "v.mp4").span(start, end) == span


def test_bad_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good.mp4"
    write_video(good, pattern(30, 64, 64), 10)
    data = good.read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "short.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.mp4").write_text("no video\n" * 200)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    zero_frames(tmp_path / "zero.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("none", "empty", "short", "text", "noise", "zero", "folder"):
        path = tmp_path / f"{name}.mp4"
        with pytest.raises(VideoError) as caught:
            read_clip(path, Sampling(frames=8))
        assert str(path) in caught.value.message
        assert "\n" not in str(caught.value)
        assert caught.value.hint
        assert "/project/" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    write_video(path, pattern(3, 32, 34), 10)
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(VideoError, match="does not decode"):
            Video(path)
    else:
        pytest.skip("this user may read everything")


def test_a_decoder_that_never_returns_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "v.mp4", pattern(3, 32, 34), 10)
    video = Video(tmp_path / "v.mp4", timeout=0.3)
    monkeypatch.setattr(video, "_decode", lambda *_: time.sleep(30))
    began = time.monotonic()
    with pytest.raises(VideoError, match=r"did not decode within 0\.3 s"):
        video.read(np.array([0]))
    assert time.monotonic() - began < 5

    with pytest.raises(VideoError, match=r"did not decode within 0\.3 s"):
        video.read(np.array([0]), lambda frame: frame)


@pytest.mark.parametrize("each", [None, lambda frame: frame])
@pytest.mark.parametrize("cores", [0, 10**6])
def test_a_decoder_that_goes_forward_has_time_as_long_as_it_gets_on(
    tmp_path: Path, each: module.EachFrame | None, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame far from the last one takes many that nobody sees."""
    monkeypatch.setattr(module, "CORES", cores)
    write_numbered(tmp_path / "v.mkv", 40, "mpeg4", **B_FRAMES)
    video = Video(tmp_path / "v.mkv", timeout=0.3)
    forward = video._reader.next
    monkeypatch.setattr(video._reader, "next", lambda: time.sleep(0.02) or forward())
    assert numbers_shown(video.read(np.array([37]), each) / 255).tolist() == [37]
    monkeypatch.setattr(video._reader, "next", lambda: time.sleep(30))
    with pytest.raises(VideoError, match=r"did not decode within 0\.3 s"):
        video.read(np.array([39]), each)


@pytest.mark.parametrize("cores", [0, 10**6])  # nothing beside the decoder; a thread of its own
@pytest.mark.parametrize("numbers", [[0], [3, 3, 3], [9, 2, 5, 2], list(range(11)), list(range(10, -1, -1))])
def test_frames_handled_beside_the_decoder_are_those_handled_after_it(
    tmp_path: Path, numbers: list[int], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CORES", cores)
    write_video(tmp_path / "v.mp4", pattern(11, 32, 34), 10)
    video = Video(tmp_path / "v.mp4")
    wanted = video.read(np.array(numbers))[:, ::2, :, :1]
    for last in (False, True, True):  # a file that was closed is opened again
        made = video.read(np.array(numbers), lambda frame: frame[::2, :, :1], last=last)
        np.testing.assert_array_equal(made, wanted)


def test_frames_outlive_their_decoder(tmp_path: Path) -> None:
    """They lie in the decoder's memory, which must not serve other frames meanwhile."""
    write_video(tmp_path / "v.mp4", pattern(12, 64, 98), 10)
    write_video(tmp_path / "other.mp4", pattern(12, 64, 98, seed=5), 10)
    wanted = Video(tmp_path / "v.mp4").read(np.arange(12))
    video = Video(tmp_path / "v.mp4")
    kept = video._decode(np.arange(12), last=True)
    del video
    for _ in range(3):
        Video(tmp_path / "other.mp4").read(np.arange(12))
    np.testing.assert_array_equal(np.stack(kept), wanted)


def test_what_is_made_of_a_frame_may_fail_and_the_decoder_stops(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", pattern(60, 32, 34), 10)

    def fails(frame: object) -> None:
        raise ZeroDivisionError

    video = Video(tmp_path / "v.mp4")
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        video.read(np.arange(60), fails)
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not set(threading.enumerate()) - before
    assert len(video.read(np.arange(60))) == 60


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the shared clips are not here")
def test_an_error_in_the_middle_of_a_clip_is_named_beside_the_decoder_too() -> None:
    video = Video(FIXTURES / "corrupted.mp4")
    with pytest.raises(VideoError, match="corrupted"):
        video.read(np.arange(len(video)), lambda frame: frame)


def test_a_named_pipe_is_no_clip(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError):
        Video(tmp_path / "pipe.mp4")


def test_the_decoder_brings_no_cuda_library_along(tmp_path: Path) -> None:
    """Of all that pip has installed for torch; a matrix product of them in place of torch's own ended the process."""
    write_video(tmp_path / "v.mp4", pattern(4, 32, 32), 10)
    code = """
import sys, numpy
from pathlib import Path
from dtkd_edge.video import Video
Video(sys.argv[1]).read(numpy.arange(4))
assert "libdecord" in (maps := Path("/proc/self/maps").read_text()) and "/nvidia/" not in maps
assert "nvidia" not in sys.modules
import torch
assert torch.nn.functional.conv2d(torch.ones(1, 3, 9, 9), torch.ones(4, 3, 3, 3), stride=2).eq(27).all()
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "v.mp4"], check=True)


def test_importing_brings_no_torch() -> None:
    code = (
        "import sys, dtkd_edge.video, dtkd_edge.data.catalogue, dtkd_edge.data.command, dtkd_edge.data.motion;"
        "assert not {'torch', 'av', 'decord'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("b.avi", "libx264"), ("b.avi", "mpeg4"), ("v.wmv", "wmv2"), ("v.asf", "msmpeg4v3"), ("v.3gp", "mpeg4"), ("v.flv", "flv"),
        ("b.f4v", "libx264"), ("b.mp4", "mpeg4"), ("b.mov", "mpeg4"), ("b.mkv", "mpeg4"), ("b.mp4", "mpeg2video"),
        ("b.mov", "mpeg2video"), ("b.mkv", "mpeg2video"), ("b.mov", "mpeg1video"), ("b.mkv", "mpeg1video"),
    ],
)  # fmt: skip
def test_every_container_gives_the_frame_that_is_asked_for(tmp_path: Path, name: str, codec: str) -> None:
    """Several of them without times of their frames, or with B frames, where the decoder's jumps go astray."""
    path = tmp_path / name
    write_numbered(path, 100, codec, **(B_FRAMES if name[0] == "b" else {"g": "12"}))
    assert path.suffix in EXTENSIONS
    for data in (None, path.read_bytes()):
        video = Video(path, data=data)
        assert (len(video), video.fps) == (100, pytest.approx(25))
        for numbers in ([40, 7, 7, 93], [60, 61], [2]):
            assert numbers_shown(video.read(np.array(numbers)) / 255).tolist() == numbers
        each = video.read(np.array([5, 80, 31]), lambda frame: frame, last=True)
        assert numbers_shown(each / 255).tolist() == [5, 80, 31]


@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+empty_moov+delay_moov"])
@pytest.mark.parametrize("first", [b"ftyp", b"free"])  # old .mov have no `ftyp`
def test_b_frames_are_found_in_every_kind_of_mp4(tmp_path: Path, flags: str, first: bytes) -> None:
    write_numbered(tmp_path / "v.mov", 60, "mpeg4", muxer={"movflags": flags}, **B_FRAMES)
    video = Video("v.mov", data=(tmp_path / "v.mov").read_bytes().replace(b"ftyp", first, 1))
    assert numbers_shown(video.read(np.array([7, 40])) / 255).tolist() == [7, 40]


@pytest.mark.parametrize("muxer", [{"movflags": "frag_keyframe+empty_moov"}, {"use_editlist": "0"}])
def test_b_frames_of_which_the_first_would_be_lost_are_refused(tmp_path: Path, muxer: dict[str, str]) -> None:
    path = tmp_path / "v.mp4"
    write_numbered(path, 30, "mpeg4", muxer=muxer, **B_FRAMES)
    with pytest.raises(VideoError, match=r"takes other frames .* \(re-encode: ffmpeg -i x\.mp4 new\.mp4\)"):
        Video(path)
    write_numbered(path, 30, "libx264", muxer=muxer, **B_FRAMES)
    assert numbers_shown(Video(path).read(np.array([7, 20])) / 255).tolist() == [7, 20]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("v.mp4", "libx264", B_FRAMES), ("v.mov", "libx264", B_FRAMES), ("v.mkv", "libx264", B_FRAMES), ("v.mp4", "mpeg4", {}),
        ("v.mp4", "libx265", {"preset": "ultrafast", "x265-params": "bframes=2:log-level=none"}), ("v.webm", "libvpx", {}),
    ],
)  # fmt: skip
def test_ordinary_files_are_read_by_jumps(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    write_numbered(tmp_path / name, 60, codec, **options)
    video = Video(tmp_path / name)
    assert video._next is None
    for number in (7, 50, 31):
        assert numbers_shown(video.read(np.array([number])) / 255).tolist() == [number]


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])  # of the one it opens none, of the other it would lose the first frames
def test_a_transport_stream_is_refused_with_what_to_do(tmp_path: Path, codec: str) -> None:
    write_numbered(tmp_path / "v.ts", 40, codec)
    with pytest.raises(VideoError, match=r"v\.ts: .* frames .* \(remux: ffmpeg -i x\.ts -c copy x\.mp4\)"):
        Video(tmp_path / "v.ts")
    with pytest.raises(VideoError, match=r"none\.ts: no such file"):
        Video(tmp_path / "none.ts")


@pytest.mark.parametrize("name", ["v.mpg", "v.vob"])
def test_a_programme_stream_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    write_numbered(tmp_path / name, 40, "mpeg2video", **B_FRAMES)
    with pytest.raises(VideoError, match=rf"{name}: .* frames .* \(re-encode: ffmpeg -i x{name[1:]} new\.mp4\)"):
        Video(tmp_path / name)


@pytest.mark.parametrize("name", ["v.mpg", "v.ts", "v.m2ts"])
def test_mpeg_streams_are_known_whatever_their_ending(tmp_path: Path, name: str) -> None:
    write_numbered(tmp_path / name, 10, "mpeg2video", muxer={"mpegts_m2ts_mode": "1"} if name == "v.m2ts" else None)
    renamed = (tmp_path / name).rename(tmp_path / "v.mp4")
    for data in (None, renamed.read_bytes()):
        with pytest.raises(VideoError, match="takes other frames"):
            Video(renamed, data=data)


@needs_fixtures
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("av1_video.mkv", (270, 480)),
        ("demo.mp4", (256, 340)),
        ("flipping_a_pancake.mkv", (256, 340)),
        ("h265_video.mp4", (270, 480)),
        ("test.avi", (240, 320)),
        ("video_90.mov", (0, 0)),
    ],
)
def test_real_codecs(name: str, shape: tuple[int, int]) -> None:
    frames = read_clip(FIXTURES / name, Sampling(frames=8))
    assert len(frames) == 8
    assert frames.std() > 5
    if shape[0]:
        reference = by_pyav(FIXTURES / name)
        numbers = Sampling(frames=8).indices(len(reference))[0]
        assert np.abs(frames.astype(int) - reference[numbers]).mean() < 2


def test_bytes_read_as_their_file_does(motion_folder: Path) -> None:
    path = motion_folder / "videos/train/000003.mp4"
    numbers = np.array([5, 0, 5, 2])
    made, file = Video("shard.tar/clip.mp4", data=path.read_bytes()), Video(path)
    assert (len(made), made.fps) == (len(file), file.fps) and (made.read(numbers) == file.read(numbers)).all()
    for data, said in ((b"", "the file is empty"), (path.read_bytes()[:400], "cut off"), (b"text\n" * 99, "the file is text")):
        with pytest.raises(VideoError, match=rf"shard\.tar/clip\.mp4: .*{said}"):
            Video("shard.tar/clip.mp4", data=data)


@needs_fixtures
@pytest.mark.parametrize("name", ["av1_video.mkv", "h265_video.mp4", "test.avi", "video_90.mov"])
def test_bytes_of_real_codecs(name: str) -> None:
    made = Video(name, data=(FIXTURES / name).read_bytes())
    numbers = np.arange(min(len(made), 12))
    assert (made.read(numbers) == Video(FIXTURES / name).read(numbers)).all()


@needs_fixtures
def test_rotation_is_honoured() -> None:
    path = FIXTURES / "video_90.mov"
    frame = Video(path).read(np.array([0]))[0]
    stored = by_pyav(path)[0]
    assert frame.shape[:2] == stored.shape[1::-1]
    turned = min(np.abs(np.rot90(stored, k).astype(int) - frame).mean() for k in (1, 3))
    assert turned < 3


@needs_fixtures
def test_a_corrupted_file_is_refused_where_it_is_broken() -> None:
    video = Video(FIXTURES / "corrupted.mp4")
    with pytest.raises(VideoError, match="does not decode"):
        video.read(np.arange(len(video)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"path,label\n" * 500, "the file is text"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomiso2\0\0\x10\0mdat" + b"x" * 900, "cut off"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomiso2\0\0\0\0free", "cut off"),
        (b"\0\0\0\x18ftyp", "cut off"),
    ],
)
def test_what_can_be_no_video_is_said_without_the_decoder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=said):
        Video(tmp_path / "v.mp4")
    assert capfd.readouterr() == ("", "")


def test_module_timeout_is_finite() -> None:
    assert 0 < module.DECODE_TIMEOUT_S <= 120
