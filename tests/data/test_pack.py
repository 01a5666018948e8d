"""`dtkd-edge data pack`: what it writes reads like its source, and an interruption costs nothing."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import official_trees as trees
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_videos import pattern

from dtkd_edge.data import pack as module
from dtkd_edge.data.catalogue import Catalogue, open_split
from dtkd_edge.data.motion import write_video
from dtkd_edge.data.pack import Settings, pack, packed_size
from dtkd_edge.errors import DataError
from dtkd_edge.preprocess import Preprocess, Sampling
from dtkd_edge.recipe import DataConfig
from dtkd_edge.video import Video, read_input

SMALL = Settings(short=48)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Two classes; sizes and rates of all kinds; one name in two formats."""
    for name in ("run", "walk, slowly"):
        for i, (height, width, rate) in enumerate([(90, 160, 30), (121, 75, 10), (32, 32, 25), (60, 98, 12)]):
            path = tmp_path / "set" / name / f"{i}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            even = pattern(12, height // 2 * 2, width // 2 * 2, i)
            write_video(path, even, rate)
    shutil.copy(tmp_path / "set/run/0.mp4", tmp_path / "set/run/0.mkv")
    return tmp_path / "set"


def packed(out: Path, side: str, **more: object) -> Catalogue:
    return open_split(DataConfig.model_validate({"kind": "folder", "root": out, **more}), side)  # type: ignore[arg-type]


def test_what_is_packed_reads_like_its_source(wide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = pack("folder", out, overrides=[f"data.root={wide}"], settings=SMALL)
    assert result["made"] == 9 and result["broken"] == {}
    preprocess = Preprocess(resize_short=32, crop=32, sampling=Sampling(frames=4))
    for side in ("train", "val"):
        source = open_split(DataConfig(kind="folder", root=wide), side)  # type: ignore[arg-type]
        made = packed(out, side)
        assert made.classes == source.classes and made.labels().tolist() == source.labels().tolist()
        for i in range(len(source)):
            video, old = Video(made.path(i)), Video(source.path(i))
            assert (len(video), video.fps) == (len(old), pytest.approx(old.fps, rel=1e-3))
            assert min(video.read(np.array([0])).shape[1:3]) == min(48, *old.read(np.array([0])).shape[1:3])
            difference = np.abs(read_input(made.path(i), preprocess).astype(int) - read_input(source.path(i), preprocess))
            assert difference.mean() < 10
    assert {p.name for p in out.iterdir()} == {"videos", "train.csv", "val.csv", "classes.txt", "pack.json", "pack.jsonl"}


@given(st.integers(2, 4000), st.integers(2, 4000), st.integers(32, 512))
def test_sizes_are_even_never_larger_and_keep_their_shape(width: int, height: int, short: int) -> None:
    wide, tall = packed_size(width, height, short)
    assert wide % 2 == tall % 2 == 0 and wide <= width + 1 and tall <= height + 1
    if min(width, height) > short:
        assert abs(min(wide, tall) - short) <= 1
        scale = short / min(width, height)
        assert abs(wide - width * scale) <= 1.001 and abs(tall - height * scale) <= 1.001
    else:
        assert width - wide < 2 and height - tall < 2


@pytest.mark.parametrize("frames", [False, True])
def test_clips_of_long_videos_and_raw_frames_become_files_with_two_heads(tmp_path: Path, frames: bool) -> None:
    root = trees.epic100(tmp_path / "set", frames=frames, clips=3)
    names = ["data.frame_names=frame_%010d.jpg"] if frames else []
    pack("epic100", tmp_path / "out", overrides=[f"data.root={root}", *names], settings=SMALL)
    made = packed(tmp_path / "out", "train")
    assert {head: len(found) for head, found in made.classes.items()} == {"verb": 4, "noun": 5}
    assert made.labels("noun").tolist() == [0, 1, 2] * 2
    assert made.classes["noun"][4] == "board:chopping"
    assert [len(Video(made.path(i))) for i in range(3)] == ([20, 21, 21] if frames else [20, 20, 20])
    assert Video(made.path(0)).fps == pytest.approx(20)
    whole, clip = pattern(60, 32, 40), Video(made.path(1)).read(np.arange(20)).astype(int)
    offsets = [np.abs(clip - whole[at : at + 20]).mean() for at in range(40)]
    assert np.argmin(offsets) == (9 if frames else 10)  # raw frames are counted from 1


def test_broken_clips_are_left_out_or_stop_it(broken_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("pack") / "out"
    override = [f"data.root={broken_folder}"]
    with pytest.raises(DataError, match=r"train: \d of \d+ do not decode, more than data\.max_broken = 0\.05"):
        pack("folder", out, overrides=override, settings=SMALL)
    assert not (out / "train.csv").exists() and len(list(out.rglob("*.mp4"))) == 8
    result = pack("folder", out, overrides=[*override, "data.max_broken=0.5"], settings=SMALL)
    assert (result["made"], len(result["broken"])) == (0, 5)  # the good ones were there
    assert len(packed(out, "train")) + len(packed(out, "val")) == 8


def test_only_what_changed_is_made_again(wide: Path, tmp_path: Path) -> None:
    out, override = tmp_path / "out", [f"data.root={wide}"]
    pack("folder", out, overrides=override, settings=SMALL)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.mp4")}
    assert pack("folder", out, overrides=override, settings=SMALL)["made"] == 0
    write_video(wide / "run/1.mp4", pattern(20, 64, 64, 7), 10)
    (out / "videos/run/2.mp4").unlink()
    with (out / "pack.jsonl").open("a") as stream:
        stream.write('["videos/ru')  # a kill in the middle of a line
    assert pack("folder", out, overrides=override, settings=SMALL)["made"] == 2
    assert len(Video(out / "videos/run/1.mp4")) == 20
    changed = {p.relative_to(out).as_posix() for p in out.rglob("*.mp4") if before[p] != p.stat().st_mtime_ns}
    assert changed == {"videos/run/1.mp4", "videos/run/2.mp4"}
    assert pack("folder", out, overrides=override, settings=SMALL)["made"] == 0
    with pytest.raises(DataError, match=r"packed with other settings: short 48 \(now 64\)"):
        pack("folder", out, overrides=override, settings=Settings(short=64))
    with pytest.raises(DataError, match=r"exists and is no packed data set"):
        pack("folder", wide, overrides=override, settings=SMALL)


def test_a_file_that_is_not_what_it_should_be_gets_no_name(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.encode

    def negative(path: Path, frames: object, *args: object, **kwargs: object) -> int:
        return real(path, [255 - frame for frame in frames], *args, **kwargs)  # type: ignore[attr-defined, arg-type]

    def short(path: Path, frames: object, *args: object, **kwargs: object) -> int:
        return real(path, list(frames)[:-1], *args, **kwargs)  # type: ignore[call-overload, arg-type]

    for number, (wrong, said) in enumerate(
        [(negative, "packed pixels differ by"), (short, "packed into 11 frames instead of 12")]
    ):
        monkeypatch.setattr(module, "encode", wrong)
        out = tmp_path / f"out{number}"
        with pytest.raises(DataError, match=r"train: (\d) of \1 do not decode"):
            pack("folder", out, overrides=[f"data.root={wide}"], settings=SMALL)
        assert not list(out.rglob("*.mp4"))
        assert said in (out / "pack.jsonl").read_text()


def test_variable_rate_becomes_constant(tmp_path: Path) -> None:
    path = trees.variable_rate(tmp_path / "set/a/0.mp4")
    for name in ("a/1.mp4", "b/0.mp4", "b/1.mp4"):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "set" / name)
    pack("folder", tmp_path / "out", overrides=[f"data.root={tmp_path / 'set'}"], settings=Settings(short=32))
    made = Video(tmp_path / "out/videos/a/0.mp4")
    source = Video(path)
    numbers = np.arange(len(source))
    with av.open(str(tmp_path / "out/videos/a/0.mp4")) as container:
        times = np.array([float(frame.time or 0) for frame in container.decode(video=0)])
    assert np.ptp(np.diff(times)) < 1e-3
    assert np.abs(made.read(numbers).astype(int) - source.read(numbers)).mean() < 6


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_pack_goes_on(tmp_path: Path, stop: signal.Signals) -> None:
    clip = trees.video(tmp_path / "clip.mp4", frames=40, height=256, width=320)
    for i in range(60):
        (tmp_path / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, tmp_path / "set" / "ab"[i % 2] / f"{i}.mp4")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dtkd_edge", "data", "pack", "folder", str(out), "--set", f"data.root={tmp_path / 'set'}"]
    command += ["--short", "128", "--json", str(tmp_path / "result.json")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while len(list(out.rglob("*.mp4"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(stop)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (130 if stop == signal.SIGINT else -9)
    assert "Traceback" not in said
    finished = sum(1 for line in (out / "pack.jsonl").read_text().splitlines())
    assert 0 < finished < 60
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert 60 - finished - 4 <= result["made"] <= 60 - finished  # a killed one may have lost its line
    assert result["clips"]["train"] + result["clips"]["val"] == 60
    assert len(list(out.rglob("*.mp4"))) == 60
