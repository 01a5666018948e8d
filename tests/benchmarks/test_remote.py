"""`bench --host` against a real sshd on loopback, with a far home folder and a prepared device root."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from deploy_cases import edit_manifest
from test_telemetry import fake_jetson

from dtkd_edge.benchmarks import remote
from dtkd_edge.benchmarks.command import bench
from dtkd_edge.benchmarks.record import Record, read_records
from dtkd_edge.benchmarks.ssh import CONFIG_VARIABLE, Ssh, plain
from dtkd_edge.errors import InputError, MissingDependency, MissingDevice, UsageError
from dtkd_edge.files import sha256

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
QUICK = {"min_seconds": 0.1, "min_queries": 20, "warmup": 0.1}


class FarMachine:
    """An sshd of our own on a free port, that logs this user in with a home folder below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        (self.home / ".local/bin").mkdir(parents=True)
        program = self.home / ".local/bin/dtkd-edge"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m dtkd_edge "$@"\n')
        program.chmod(0o755)
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        root = fake_jetson(folder / "device")
        settings = {
            "Port": self.port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host_key", "PidFile": "none", "UsePAM": "no",
            "AuthorizedKeysFile": folder / "authorized_keys", "StrictModes": "no", "PasswordAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "SetEnv": f"HOME={self.home} DTKD_EDGE_DEVICE_ROOT={root} PATH=/usr/bin:/bin",
        }  # fmt: skip
        (folder / "sshd_config").write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
        self.trust((folder / "host_key.pub").read_text())
        (folder / "ssh_config").write_text(
            f"Host far\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {folder / 'user_key'}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {folder / 'known_hosts'}\n  GlobalKnownHostsFile /dev/null\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def trust(self, public_key: str) -> None:
        kind, key = public_key.split()[:2]
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def start(self) -> None:
        log = (self.folder / "sshd.log").open("ab")
        self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", self.folder / "sshd_config"], stdout=log, stderr=log)
        log.close()
        for _ in range(100):
            if self.process.poll() is not None:
                pytest.skip(f"sshd does not start here: {(self.folder / 'sshd.log').read_text()[-200:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)

    def stop(self) -> None:
        """As a cable that is pulled: the listener and every session of it go at once."""
        assert self.process is not None
        family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        for member in family:
            with suppress(psutil.NoSuchProcess):  # some end by themselves when their parent does
                member.kill()
        self.process.wait()

    @property
    def jobs(self) -> list[Path]:
        folder = self.home / remote.JOBS
        return list(folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FarMachine]:
    if not (Path(SSHD).is_file() and shutil.which("ssh")):
        pytest.skip("OpenSSH's client and server are not installed")
    if os.geteuid() == 0 and not Path("/run/sshd").is_dir():
        Path("/run/sshd").mkdir()  # root's sshd wants this empty folder
    machine = FarMachine(tmp_path)
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "ssh_config"))
    machine.start()
    yield machine
    if machine.process is not None and machine.process.poll() is None:
        machine.stop()


@pytest.mark.slow
def test_rows_come_back_from_a_jetson(
    far: FarMachine, onnx_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = bench([onnx_artifact], device="jetson", host="far", threads=1, json=str(tmp_path / "rows.jsonl"), **QUICK)
    assert [r.scenario for r in rows] == ["single-stream", "offline"]
    for row in rows:
        assert row.status == "ok" and row.device.kind == "jetson" and row.device.host == "far"
        assert row.device.details["jetson"]["model"] == "NVIDIA Jetson Orin Nano Developer Kit"
        assert row.power_w == pytest.approx(2.957) and row.throughput is not None
        assert row.energy_mj == pytest.approx(2957 / row.throughput, rel=1e-3)
        assert row.telemetry.power_mode == "15W" and row.telemetry.throttled == "no"
        assert row.artifact == f"tiny-onnx/{onnx_artifact.name}" and "--host far" in row.command
    said = capsys.readouterr()
    assert "2 of 2 files copied" in said.err and "far: single-stream:" in said.err and "JetPack 6" in said.out
    assert not far.jobs  # cleaned up
    bench([onnx_artifact], device="jetson", host="far", scenarios=["single-stream"], **QUICK)
    assert "0 of 2 files copied" in capsys.readouterr().err
    words: dict[str, Any] = {
        "device": "jetson",
        "host": "far",
        "threads": 1,
        "json": str(tmp_path / "rows.jsonl"),
        "resume": True,
    }
    assert bench([onnx_artifact], **words, **QUICK) == rows
    assert "files copied" not in capsys.readouterr().err
    (more,) = [r for r in bench([onnx_artifact], scenarios=["offline,multi-stream"], **words, **QUICK) if r not in rows]
    assert more.scenario == "multi-stream" and more.device.host == "far"


FAR_EXPORT = """#!/bin/sh
# dtkd-edge on a machine with TensorRT: its `export FOLDER --target tensorrt` needs a GPU, so the engine is a stand-in that ONNX
# Runtime runs; everything else is the real program.
echo "$*" >> {calls}
case "$*" in
export*--verify-only) if [ -f "$2/model.engine" ]; then exit 0; fi; echo "error: the engine is not built yet" >&2; exit 3;;
export*) echo "building a TensorRT engine" >&2; sleep 1.5; echo "TensorRT: Timing graph nodes, 10 of 40" >&2
  if [ -f {fails} ]; then echo "[E] no memory for tactic 7" > "$2.build.log"; echo "error: out of memory" >&2; exit 1; fi
  {python} -c "{code}" "$2"; exit 0;;
esac
exec {python} -m dtkd_edge "$@"
"""
BUILD = """
import sys
from pathlib import Path
from dtkd_edge.artifact import Artifact, EngineKey, new_artifact, now
old = Artifact.open(Path(sys.argv[1]))
graph = old.file('.onnx').read_bytes()
key = EngineKey(gpu='far', compute_capability='8.7', tensorrt='10.3')
with new_artifact(old.folder, old.manifest.model_copy(update={'target': 'onnx', 'engine_key': key, 'created': now()})) as aside:
    (aside / 'model.onnx').write_bytes(graph)
    (aside / 'model.engine').write_bytes(b'ENGINE')
    (aside / 'build.log').write_text('[V] tactic 7 took 0.1 ms')
"""


@pytest.mark.slow
def test_an_engine_is_built_there_once(
    far: FarMachine, onnx_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = shutil.copytree(onnx_artifact, tmp_path / "tensorrt-fp16")
    edit_manifest(ready, target="tensorrt", precision="fp16")
    calls, fails = tmp_path / "calls", tmp_path / "fails"
    program = far.home / ".local/bin/dtkd-edge"
    program.write_text(FAR_EXPORT.format(calls=calls, fails=fails, python=sys.executable, code=BUILD.strip()))
    words: dict[str, Any] = {
        "host": "far",
        "scenarios": ["single-stream"],
        "threads": 1,
        "json": str(tmp_path / "r.jsonl"),
        **QUICK,
    }
    (row, plain_onnx) = bench([ready, onnx_artifact], **words)
    assert row.status == plain_onnx.status == "ok" and row.artifact == "tiny-onnx/tensorrt-fp16" and row.path == str(ready)
    assert "model.engine" in row.files and "model.engine" not in plain_onnx.files
    said = capsys.readouterr().err
    assert "far: building a TensorRT engine" in said and "far: TensorRT: Timing graph nodes, 10 of 40" in said
    assert said.index("building a TensorRT") < said.index("far: single-stream:")
    asked = calls.read_text().splitlines()
    assert sum("--target tensorrt" in line for line in asked) == 1
    build_log = tmp_path / "r.far.build.log"
    assert "[V] tactic 7 took 0.1 ms" in build_log.read_text() and f"far: its build.log: {build_log}" in said

    assert bench([ready, onnx_artifact], resume=True, **words) == [row, plain_onnx]  # though its manifest is another one there
    (again, _) = bench([ready, onnx_artifact], **words)  # the engine lasts; it is only checked
    assert again.files == row.files and "building" not in capsys.readouterr().err
    assert sum("--target tensorrt" in line for line in calls.read_text().splitlines()) == 1

    edit_manifest(ready, name="another")
    fails.touch()
    with pytest.raises(MissingDevice, match=r"TensorRT is not usable|nothing here runs"):
        bench([ready], **{**words, "json": str(tmp_path / "failed.jsonl")})
    assert "far: error: out of memory" in capsys.readouterr().err
    assert "[E] no memory for tactic 7" in (tmp_path / "failed.far.build.log").read_text()
    assert not far.jobs


@pytest.mark.slow
def test_a_dropped_connection_is_taken_up_again(far: FarMachine, onnx_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: list[Record] = []

    def work() -> None:
        found.extend(bench([onnx_artifact], device="jetson", host="far", scenarios=["single-stream"], min_seconds=3.0, threads=1))

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.perf_counter() + 60
    while not any((job / "pid").exists() for job in far.jobs) and time.perf_counter() < deadline:
        time.sleep(0.05)
    pid = (far.jobs[0] / "pid").read_text()
    far.stop()
    said = ""
    while "trying again" not in said and thread.is_alive() and time.perf_counter() < deadline:  # away until it is missed
        time.sleep(0.05)
        said += capsys.readouterr().err
    far.start()
    thread.join(timeout=90)
    assert len(found) == 1 and found[0].status == "ok"
    assert "trying again" in said
    assert not far.jobs
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


def begin(far: FarMachine, command: list[str]) -> tuple[subprocess.Popen[str], int]:
    """The command as its user types it, once the first of its two rows is finished on the far machine; and the process there."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.perf_counter() + 120
    while not any((job / "rows.jsonl").exists() for job in far.jobs):
        assert process.poll() is None and time.perf_counter() < deadline, process.communicate()
        time.sleep(0.02)
    return process, int((far.jobs[0] / "pid").read_text())


def running(group: int) -> list[int]:
    """Processes of a group; the dead ones that nobody has asked after are none."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def words_of(artifact: Path, rows: Path, *more: str) -> list[str]:
    words = f"--host far --threads 1 --min-seconds 2 --min-queries 20 --warmup 0.1 --json {rows}".split()
    return [sys.executable, "-m", "dtkd_edge", "bench", str(artifact), *words, *more]


@pytest.mark.slow
def test_a_far_bench_that_is_killed_keeps_its_rows(far: FarMachine, onnx_artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    process, pid = begin(far, words_of(onnx_artifact, file))
    os.killpg(pid, signal.SIGKILL)  # all of it, as a restart of the machine would
    _, said = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert "the bench there ended without a word; 1 of 2 rows were finished and came back" in said and "--resume" in said
    (first,) = read_records(file)
    assert first.status == "ok" and first.scenario == "single-stream" and first.device.host == "far"
    assert "single-stream:" in (tmp_path / "rows.far.log").read_text() and f"far: its log: {tmp_path / 'rows.far.log'}" in said
    assert not far.jobs

    again = subprocess.run(words_of(onnx_artifact, file, "--resume"), capture_output=True, text=True, check=True)
    assert "far: offline:" in again.stderr and "far: single-stream:" not in again.stderr
    kept, second = read_records(file)
    assert kept == first and second.status == "ok" and second.scenario == "offline"


@pytest.mark.slow
def test_both_sides_killed(far: FarMachine, onnx_artifact: Path, tmp_path: Path) -> None:
    """Nobody brought the finished row back, so it waits there for the same command."""
    file = tmp_path / "rows.jsonl"
    process, pid = begin(far, words_of(onnx_artifact, file))
    process.kill()
    process.communicate()
    os.killpg(pid, signal.SIGKILL)
    (there,) = read_records(far.jobs[0] / "rows.jsonl")
    again = subprocess.run(words_of(onnx_artifact, file), capture_output=True, text=True, check=True)
    assert "its finished rows are not measured again" in again.stderr
    first, second = read_records(file)
    assert (first.created, first.latency_ms) == (there.created, there.latency_ms) and second.scenario == "offline"
    assert not far.jobs


@pytest.mark.slow
def test_ctrl_c_stops_the_far_bench_and_keeps_its_rows(far: FarMachine, onnx_artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    process, pid = begin(far, words_of(onnx_artifact, file))
    assert running(pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: the ssh that runs just now gets it too
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopping the bench on far" in said and "Traceback" not in said
    assert not running(pid) and not far.jobs
    assert [r.scenario for r in read_records(file)] == ["single-stream"] and "single-stream" in out
    assert (tmp_path / "rows.far.log").is_file()


def test_a_far_doctor_that_fails_is_said(far: FarMachine, onnx_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = far.home / ".local/bin/dtkd-edge"
    program.write_text(
        '#!/bin/sh\ncase $1 in --version) echo "dtkd-edge 9";; doctor) echo "bad libraries"; exit 4;; *) kill -9 $$;; esac\n'
    )
    with pytest.raises(MissingDevice, match="the bench there was ended by signal 9; 0 of 2 rows"):
        bench([onnx_artifact], host="far")
    said = capsys.readouterr().err
    assert "far: bad libraries" in said and "(exit code 4)" in said
    assert not far.jobs


def test_the_jobs_process_is_told_from_dead_and_other_ones(far: FarMachine) -> None:
    job = far.home / remote.JOBS / "0"
    job.mkdir(parents=True)
    with Ssh("far") as ssh, subprocess.Popen(["sleep", "60"], cwd=job) as process:

        def state(pid: int) -> bytes:
            (job / "pid").write_text(str(pid))
            return ssh.run(f"{remote.JOBS}/0", "1", script=remote._POLL).stdout

        assert state(process.pid) == b"run\n"
        assert state(os.getpid()) == b"gone\n"  # the number is another's by now
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and left a zombie
        assert state(process.pid) == b"gone\n"


def test_a_copy_goes_on_where_it_stopped(far: FarMachine, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(os.urandom(300_000))
    digest = sha256(file)
    store = far.home / remote.FILES
    store.mkdir(parents=True)
    (store / f"{digest}.part").write_bytes(file.read_bytes()[:200_000])
    with Ssh("far") as ssh:
        assert ssh.send(file, remote.FILES, digest)
        assert (store / digest).read_bytes() == file.read_bytes()
        assert not ssh.send(file, remote.FILES, digest)
        (store / digest).unlink()
        (store / f"{digest}.part").write_bytes(b"not the beginning of it")
        with pytest.raises(MissingDevice, match="another sha256"):
            ssh.send(file, remote.FILES, digest)
        assert ssh.send(file, remote.FILES, digest)  # the bad part is gone


def test_an_unknown_or_changed_host_key_is_refused(far: FarMachine, onnx_artifact: Path) -> None:
    (far.folder / "known_hosts").write_text("")
    with pytest.raises(MissingDevice, match="host key is not known"):
        bench([onnx_artifact], host="far")
    far.trust((far.folder / "user_key.pub").read_text())  # some other key
    with pytest.raises(MissingDevice, match="host key is not known"):
        bench([onnx_artifact], host="far")


def test_refusals(far: FarMachine, onnx_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (far.home / ".local/bin/dtkd-edge").unlink()
    with pytest.raises(MissingDependency, match="not installed there"):
        bench([onnx_artifact], host="far")
    (far.folder / "authorized_keys").write_text("")
    with pytest.raises(MissingDevice, match="refuses the login"):
        bench([onnx_artifact], host="far")
    far.stop()
    monkeypatch.setattr(Ssh.__init__, "__kwdefaults__", {"tries": 2, "pause": 0.01})
    with pytest.raises(MissingDevice, match="refused"):
        bench([onnx_artifact], host="far")


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "a b", "a;b", "$(x)", "", "u@h/../x"])
def test_a_host_is_never_an_option_or_a_command(host: str, onnx_artifact: Path) -> None:
    with pytest.raises(UsageError, match="not a host"):
        bench([onnx_artifact], host=host)


def test_what_the_far_side_says_is_data(far: FarMachine, onnx_artifact: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    program = far.home / ".local/bin/dtkd-edge"
    row = f"echo \"'$(touch {trap}.x)'; touch {trap}\" > rows.jsonl"
    program.write_text(f'#!/bin/sh\ncase $1 in --version) echo "dtkd-edge 9";; bench) {row};; esac\n')
    with pytest.raises(MissingDevice, match="not JSON lines"):
        bench([onnx_artifact], host="far")
    assert not trap.exists()
    assert plain("\x1b[2Jred\x1b[31m\x07 and \x9b2J") == "red and 2J"


def test_the_far_benchs_error_is_ours(far: FarMachine, onnx_artifact: Path) -> None:
    with pytest.raises(InputError, match="far: --data nowhere: no such folder"):
        bench([onnx_artifact], host="far", data=Path("nowhere"))
    assert not far.jobs
