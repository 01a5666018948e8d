from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtkd_edge.errors import InputError
from dtkd_edge.files import _exchange, atomic_folder, atomic_path, disk_errors, sha256, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as aside:
        aside.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failing_block_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as aside:
        (aside / "weights").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as aside:
        (aside / "weights").write_text("half")
        1 / 0  # noqa: B018
    assert (path / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model"
    for content in ("one", "two"):
        with atomic_folder(path) as aside:
            (aside / content).write_text(content)
    assert names(path) == ["two"]
    assert names(path.parent) == ["model"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_exchange_swaps_two_folders(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "was").write_text(name)
    if not _exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot swap two names in one step")
    assert (tmp_path / "a" / "was").read_text() == "b"
    assert (tmp_path / "b" / "was").read_text() == "a"


WRITER = """
import sys
from pathlib import Path
from dtkd_edge.files import atomic_folder, write_text
path, n = Path(sys.argv[1]), 0
print("go", flush=True)
while True:
    n += 1
    write_text(path / "file", f"{n}\\n" * 2000)
    with atomic_folder(path / "folder") as aside:
        for name in ("a", "b"):
            (aside / name).write_text(str(n))
"""


@pytest.mark.parametrize("wait", [0.05, 0.113, 0.171, 0.24])
def test_kill_9_in_the_middle_leaves_a_whole_file_and_a_whole_folder(tmp_path: Path, wait: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    while not (tmp_path / "folder").exists():
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    lines = (tmp_path / "file").read_text().splitlines()
    assert len(lines) == 2000
    assert len(set(lines)) == 1
    folder = tmp_path / "folder"
    assert names(folder) == ["a", "b"]
    assert (folder / "a").read_text() == (folder / "b").read_text()


def test_a_full_disk_is_an_input_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    """A file-size limit fails in the middle of a write, as a full disk does (EFBIG in place of ENOSPC)."""
    path = tmp_path / "big"
    write_text(path, "old")
    code = f"""
import resource, signal
from pathlib import Path
from dtkd_edge.errors import InputError
from dtkd_edge.files import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_text(Path({str(path)!r}), "x" * 1_000_000)
except InputError as error:
    print(error.message, "|", error.hint)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10_000
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: the disk is full | free some space, then run the same command again\n"
    assert path.read_text() == "old"
    assert names(tmp_path) == ["big"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system of 64 kB")
def test_a_really_full_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with atomic_folder(disk / "model") as aside:
            (aside / "weights").write_bytes(b"old")
        with pytest.raises(InputError, match="model: the disk is full"), atomic_folder(disk / "model") as aside:
            (aside / "weights").write_bytes(bytes(200_000))
        assert (disk / "model" / "weights").read_bytes() == b"old"
        with pytest.raises(InputError, match="file: the disk is full"):
            write_text(disk / "file", "x" * 200_000)
        assert names(disk) == ["model"]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file/below", "a file stands where a folder is needed"),
        ("folder", "cannot be written: is a directory"),
        ("x" * 300, "cannot be written: file name too long"),
    ],
)
def test_impossible_places_are_named(tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=said) as caught:
        write_text(tmp_path / place, "x")
    assert place in caught.value.message
    assert (tmp_path / "file").read_text() == "a file"


def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out: not writable"), disk_errors(Path("out")):
        raise PermissionError(errno.EACCES, "Permission denied")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(InputError, match="not writable"):
            write_text(tmp_path / "sub" / "file", "x")


def test_other_disk_errors_pass() -> None:
    with pytest.raises(OSError, match="Input/output"), disk_errors(Path("x")):
        raise OSError(errno.EIO, "Input/output error")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)))
def test_json_comes_back(value: object) -> None:
    import tempfile

    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # lone surrogates are no text
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.json")
        write_json(path, value)
        assert json.loads(path.read_text(encoding="utf-8")) == value


def test_sha256_agrees_with_coreutils(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(os.urandom(3_000_001))
    assert sha256(path) == subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
