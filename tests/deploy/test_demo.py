"""`demo` and `doctor` as typed: how they end, and what they leave."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deploy_cases import LABELS, write_colours, write_film, write_mp4

from dtkd_edge.deploy import doctor, overlay, preflight
from dtkd_edge.deploy.demo import demo as run_demo
from dtkd_edge.errors import UsageError
from dtkd_edge.video import Video


def demo(*arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dtkd_edge", "demo", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd)


QUICK = ("--clip-seconds", 0.4, "--threshold", 0.05)


def test_a_file_is_labelled_to_its_end_and_recorded(onnx_artifact: Path, tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=60, size=(100, 66))
    out, log = tmp_path / "new" / "out.mp4", tmp_path / "events.jsonl"
    process = demo(onnx_artifact, "--source", video, "--view", "none", "--record", out, "--events", log, *QUICK)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 0 and printed == "" and "Traceback" not in said
    assert re.search(r"\d+ frames, \d+ dropped, \d+ labels, age p50 \d+ ms", said)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert events and all(e["label"] in LABELS and 0 <= e["start"] <= e["end"] for e in events)
    recording = Video(out)
    assert 3 <= len(recording) <= 60 and recording.duration > 1.0  # what comes late on a busy machine is left out
    assert max(e["end"] for e in events) <= recording.duration + 0.5  # one clock
    import numpy as np

    last = recording.read(np.array([len(recording) - 1]))[0]
    assert last.shape == (66, 100, 3)
    assert last[-24:].max() > 150 and np.median(last[-24:]) < 60  # light letters on a dark band


def test_a_file_read_fast_is_read_whole_and_the_same_every_time(onnx_artifact: Path, tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=150, size=(100, 66))
    logs = []
    for out, log in ((tmp_path / "out.mp4", tmp_path / "1.jsonl"), (None, tmp_path / "2.jsonl")):
        record = () if out is None else ("--record", out)
        process = demo(onnx_artifact, "--source", video, "--fast", "--view", "none", "--events", log, *record, *QUICK)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0, said
        assert re.search(r"150 frames, \d+ labels: 5\.0 s of video in", said), said
        logs.append(log.read_text())
    assert {(e["source"], e["model"]) for e in map(json.loads, logs[0].splitlines())} == {("clip.mp4", "tiny-onnx")}
    assert logs[0] == logs[1] and 4.5 < json.loads(logs[0].splitlines()[-1])["end"] <= 5  # dated by the file's own time
    recording = Video(tmp_path / "out.mp4")
    assert len(recording) == 150 and recording.duration == pytest.approx(5.0, abs=0.1)
    last = recording.read([149])[0].astype(int)
    assert (last[..., 1] - last[..., 0] > 60).sum() > 30  # the label, in green, holds to the last frame


def test_events_of_two_heads(tmp_path: Path) -> None:
    """A verb and a noun hold side by side, each with events of its own, and lines, overlay and events say both."""
    film = write_film(tmp_path / "film.mp4")
    artifact, log, out = write_colours(tmp_path / "colours", heads=("verb", "noun")), tmp_path / "e.jsonl", tmp_path / "out.mp4"
    options = ("--fast", "--view", "none", "--events", log, "--record", out, "--clip-seconds", 0.4, "--smoothing", 0)
    process = demo(artifact, "--source", film, *options)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    events = [json.loads(line) for line in log.read_text().splitlines()]
    by_head = {
        head: [(e["label"], round(e["start"]), round(e["end"])) for e in events if e["head"] == head] for head in ("verb", "noun")
    }
    assert by_head == {"verb": [("red", 0, 3), ("green", 3, 6), ("blue", 6, 9)], "noun": [("warm", 0, 3), ("cold", 3, 9)]}
    lines = re.findall(r" s  (\w+) \d+% · (\w+) \d+%$", said, re.M)
    assert lines == [("red", "warm"), ("green", "warm"), ("green", "cold"), ("blue", "cold")]
    assert len(Video(out)) == 90


def test_sigterm_finishes_the_files(onnx_artifact: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out.mp4", tmp_path / "events.jsonl"
    process = demo(onnx_artifact, "--source", "pattern", "--view", "none", "--record", out, "--events", log, *QUICK)
    try:
        for line in process.stderr:
            if "%" in line:  # the first label
                break
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    assert len(Video(out)) >= 3  # it has its index, however few frames a busy machine drew
    assert json.loads(log.read_text().splitlines()[-1])["end"] is not None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--source", "97"], 4, "--source 97: no camera there"),
        (["--source", "nothing.mp4"], 3, "nothing.mp4: no such file"),
        (["--source", "/proc/self"], 3, "--source /proc/self: is a folder"),
        (["--source", "pattern", "--view", "tv"], 2, "--view tv"),
        (["--source", "browser", "--view", "none"], 2, "--source browser needs --view web"),
        (["--source", "rtsp://127.0.0.1:9/live"], 4, "rtsp://127.0.0.1:9/live: cannot be opened"),
        (["--source", "pattern", "--view", "none", "--clip-seconds", "-1"], 2, "--clip-seconds"),
        (["--source", "pattern", "--view", "none", "--events", "/proc/no/e.jsonl"], 3, "--events /proc/no/e.jsonl"),
        (["--source", "pattern", "--host", "203.0.113.7"], 2, "--host 203.0.113.7"),
        (["--source", "pattern", "--fast"], 2, "--fast --source pattern"),
    ],
)
def test_what_cannot_start_says_why_in_two_lines(arguments: list[str], code: int, words: str, onnx_artifact: Path) -> None:
    process = demo(onnx_artifact, *arguments)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    lines = said.splitlines()
    error = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert words in lines[error] and lines[error + 1].startswith("  fix: ") and "Traceback" not in said


def test_an_older_recording_stays_when_no_frame_comes(onnx_artifact: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old.mp4", tmp_path / "new.mp4"
    old.write_bytes(b"precious")
    for out in (old, new):
        process = demo(onnx_artifact, "--source", "97", "--view", "none", "--record", out)
        assert "no camera there" in process.communicate(timeout=60)[1] and process.returncode == 4
    assert old.read_bytes() == b"precious" and not new.exists()


@pytest.mark.parametrize(
    ("record", "events", "words"),
    [
        ("sub/../clip.mp4", None, "--record sub/../clip.mp4: the same file as --source clip.mp4"),
        ("hard.mp4", None, "--record hard.mp4: the same file as --source clip.mp4"),
        (None, "link.jsonl", "--events link.jsonl: the same file as --source other.mp4"),
        ("new.mp4", "./new.mp4", "--events new.mp4: the same file as --record new.mp4"),
    ],
)
def test_no_file_is_written_over_another(
    record: str | None, events: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    for name in ("clip.mp4", "other.mp4"):
        Path(name).write_bytes(b"precious")
    Path("hard.mp4").hardlink_to("clip.mp4")
    Path("link.jsonl").symlink_to("other.mp4")
    with pytest.raises(UsageError) as caught:
        run_demo(None, source=["clip.mp4", "other.mp4"], record=record and Path(record), events=events and Path(events))
    assert caught.value.message == words
    assert Path("clip.mp4").read_bytes() == Path("other.mp4").read_bytes() == b"precious" and not Path("new.mp4").exists()


def test_a_cameras_password_is_not_said(onnx_artifact: Path) -> None:
    said = demo(onnx_artifact, "--source", "rtsp://me:s3cret@127.0.0.1:9/live").communicate(timeout=60)[1]
    assert "rtsp://127.0.0.1:9/live: cannot be opened" in said and "s3cret" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_ends_the_recording_and_not_the_run(onnx_artifact: Path, tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=45, size=(100, 66))
    for option in ("--record", "--events"):
        process = demo(onnx_artifact, "--source", video, "--view", "none", option, "/dev/full", *QUICK)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0, said
        assert f"{option} /dev/full" in said and "labels, age" in said and "Traceback" not in said


@pytest.mark.slow
def test_the_window(onnx_artifact: Path, tmp_path: Path) -> None:
    """On a virtual screen whose pixels lie in a file, beside busy processes, the window's green label comes to stand."""
    import numpy as np

    pytest.importorskip("cv2", reason="OpenCV is not installed")
    xvfb = shutil.which("Xvfb") or pytest.skip("Xvfb is not installed")
    screen = subprocess.Popen(
        [xvfb, "-displayfd", "1", "-screen", "0", "640x480x24", "-fbdir", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    command = [sys.executable, "-m", "dtkd_edge", "demo", str(onnx_artifact), "--source", "pattern", "--view", "window"]
    shown = {**os.environ, "DISPLAY": f":{screen.stdout.readline().strip()}", "QT_LOGGING_RULES": "*=false"}
    process = subprocess.Popen([*command, *map(str, QUICK)], stderr=subprocess.DEVNULL, env=shown)
    busy = "import time\nend = time.monotonic() + 8\nwhile time.monotonic() < end: pass"  # events were lost while others ran
    others = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(4)]
    try:
        deadline, green = time.monotonic() + 60, 0
        while green < 50 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
            pixels = np.frombuffer((tmp_path / "Xvfb_screen0").read_bytes()[-640 * 480 * 4 :], np.uint8).reshape(-1, 4)
            green = int((np.abs(pixels[:, 2::-1].astype(int) - overlay.GREEN) < 8).all(1).sum())
        assert process.poll() is None and green >= 50
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        for child in (process, *others):
            child.kill()
            child.communicate()
        screen.terminate()  # killed, it would leave its lock and its socket
        screen.communicate()


@pytest.mark.slow
def test_the_device_start_script(onnx_artifact: Path, tmp_path: Path) -> None:
    video = write_mp4(tmp_path / "clip.mp4", frames=30, size=(160, 120))
    script = Path(__file__).parents[2] / "deploy" / "jetson" / "start.sh"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["sh", str(script), str(onnx_artifact), "--source", str(video), "--view", "none"],
        env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0 and "30 frames" in result.stderr, result.stderr


def test_doctor_as_typed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dtkd_edge", "doctor"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line for line in result.stdout.splitlines() if re.match(r" ?\d+  ", line)]
    assert [int(line.split()[0]) for line in lines] == list(range(1, len(doctor.CHECKS) + 1))
    assert all(line.split()[1] in ("ok", "off") for line in lines)
    assert "newest artefact" in lines[-1] and "dtkd-edge train" in result.stdout  # nothing here yet, and what to do


def test_doctor_runs_the_newest_artefact(onnx_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "one"
    (run / "export").mkdir(parents=True)
    (run / "student.json").write_text("{}")
    (run / "export" / "onnx-fp32").symlink_to(onnx_artifact)
    monkeypatch.chdir(tmp_path)
    assert doctor.check_artifact().mark == "ok"
    (run / "export" / "onnx-fp32").unlink()
    (run / "export" / "onnx-fp32").mkdir()
    (run / "export" / "onnx-fp32" / "manifest.json").write_text("{}")
    check = doctor.check_artifact()
    assert check.mark == "off" and check.fix


def test_doctor_tries_the_artefact_that_is_named(onnx_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.doctor(onnx_artifact)
    assert re.search(r"ok +artefact +.*runs in fp32 on cpu, [\d.]+ ms a clip", capsys.readouterr().out)
    broken = tmp_path / "broken"
    shutil.copytree(onnx_artifact, broken)
    (broken / "model.onnx").write_bytes(b"x")
    with pytest.raises(doctor.NotHereError, match="artefact"):
        doctor.doctor(broken)
    assert "bad  artefact" in capsys.readouterr().out


RELEASE = "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64, DATE: Fri Sep 13 04:36:44 UTC 2024\n"


def test_doctor_on_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of an Orin Nano with JetPack 6, and what is usually wrong there."""
    root, env = tmp_path / "root", tmp_path / "env"
    for folder in ("etc", "dev", "proc/device-tree", "sys/class/video4linux/video0", "sys/class/video4linux/video1", "bin"):
        (root / folder).mkdir(parents=True)
    env.mkdir()
    (root / "etc/nv_tegra_release").write_text(RELEASE)
    (root / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    (root / "dev/nvmap").touch()
    (root / "bin/nvpmodel").write_text("#!/bin/sh\necho 'NV Power Mode: 15W'; echo 0\n")
    (root / "bin/nvpmodel").chmod(0o755)
    monkeypatch.setenv("PATH", str(root / "bin"), prepend=os.pathsep)
    config = env / "pyvenv.cfg"
    config.write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    blind = preflight.check_jetson(root, env)
    assert blind.mark == "off" and "does not see JetPack's" in blind.words and "--system-site-packages" in blind.fix
    config.write_text("include-system-site-packages = true\n")
    good = preflight.check_jetson(root, env)
    assert good.mark == "ok"
    assert good.words == "NVIDIA Jetson Orin Nano Developer Kit, L4T 36.4.0 (JetPack 6), power mode 15W"
    monkeypatch.setattr(os, "access", lambda path, _: "nvmap" not in str(path))  # root may open everything
    shut = preflight.check_jetson(root, env)
    assert shut.mark == "off" and "/dev/nvmap" in shut.words and "usermod" in shut.fix
    (root / "etc/nv_tegra_release").write_text(RELEASE.replace("R36", "R35"))
    assert "flash JetPack 6" in preflight.check_jetson(root, env).fix

    assert preflight.is_jetson(root) and "nvargus-daemon" in preflight.check_camera(root).fix
    for number, index in ((0, 0), (1, 1)):
        (root / f"dev/video{number}").touch()
        (root / f"sys/class/video4linux/video{number}/index").write_text(f"{index}\n")
        (root / f"sys/class/video4linux/video{number}/name").write_text("HD Webcam C270\n")
    assert preflight.check_camera(root).words == "--source 0 (HD Webcam C270)"


def test_a_check_that_fails_hides_no_other(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def check_driver() -> doctor.Check:
        raise RuntimeError("driver mismatch")

    def check_core() -> doctor.Check:
        return doctor.Check("core", "bad", "does not import", "pip install core")

    monkeypatch.setattr(doctor, "CHECKS", [check_driver, doctor.check_python, check_core])
    with pytest.raises(doctor.NotHereError, match="core"):
        doctor.doctor()
    out = capsys.readouterr().out
    assert "driver mismatch" in out and "Python" in out and "fix: pip install core" in out
