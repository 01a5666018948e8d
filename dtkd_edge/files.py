"""Writes that a kill or a full disk cannot leave half done, and hashes. No torch."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dtkd_edge.errors import InputError, UsageError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, put in its place when the block ends well, and removed when it does not."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        aside = Path(name)
        try:
            yield aside
            umask = os.umask(0)
            os.umask(umask)
            aside.chmod(0o666 & ~umask)  # mkstemp makes 0600
            _sync(aside)
            aside.replace(path)
            _sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside `path`; it replaces `path` whole when the block ends well."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        old = aside.with_name(aside.name + ".old")
        try:
            yield aside
            umask = os.umask(0)
            os.umask(umask)
            aside.chmod(0o777 & ~umask)  # mkdtemp makes 0700
            for file in aside.rglob("*"):
                _sync(file)
            if not path.exists():
                aside.replace(path)
            elif not _exchange(aside, path):
                path.replace(old)  # a kill between these two lines leaves the previous folder under the name `old`
                aside.replace(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)


@contextmanager
def one_at_a_time(folder: Path, waiting: Callable[[], object] | None = None) -> Iterator[None]:
    """Let a second process that wants the same folder wait for the first, instead of making it again. waiting: called again and
    again meanwhile."""
    import fcntl

    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock").open("w")
    with lock:
        with suppress(OSError):  # on a file system without locks both make it, and the last one stays
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if waiting else 0))
                    break
                except BlockingIOError:
                    assert waiting is not None
                    waiting()
                    time.sleep(1)
        yield


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold an existing folder against a second process that would write into it: UsageError there, at once. The lock goes with
    the process that holds it, however that one ends; its file stays."""
    import fcntl

    with disk_errors(folder):
        lock = (folder / ".lock").open("a+", encoding="utf-8")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            who = lock.read().strip() or "another process"
            raise UsageError(
                f"{folder}: {who} writes here", "wait for it or end it, then run the same command again; or give another --out"
            ) from error
        except OSError:  # a file system without locks
            pass
        with suppress(OSError):  # a full disk: the lock holds without a name in it
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {os.uname().nodename}")
            lock.flush()
        yield


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step, where the C library and the file system can (Linux: renameat2)."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <fcntl.h> and <stdio.h>
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk: a power cut must not undo what we reported."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder
            raise
    finally:
        os.close(handle)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_SUCH_PLACE = (errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a folder without write permission or an impossible path into an InputError that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InputError(f"{path}: the disk is full", "free some space, then run the same command again") from error
        if error.errno in _REFUSED:
            raise InputError(f"{path}: not writable", "choose another place") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise InputError(f"{path}: a file stands where a folder is needed", "choose another place") from error
        if error.errno in _NO_SUCH_PLACE:
            reason = os.strerror(error.errno or 0).lower()
            raise InputError(f"{path}: cannot be written: {reason}", "choose another place") from error
        raise


def check_place(path: Path) -> None:
    """InputError, before a long work, where `path` could not be made when it ends. Makes nothing itself."""
    place = path.absolute().parent
    while not place.exists() and place != place.parent:
        place = place.parent
    with disk_errors(path):
        try:
            with tempfile.TemporaryFile(dir=place):
                pass
        except FileNotFoundError as error:  # /proc and the like take no files, and say so in this way
            raise InputError(f"{path}: not writable", "choose another place") from error


def check_suffix(option: str, path: Path, *suffixes: str) -> None:
    """UsageError for a name that says another kind of file than `option` writes. A name without an ending says none."""
    if path.suffix and path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} {path}: writes {' or '.join(suffixes)} only", f"name a file that ends in {suffixes[0]}")


def check_output(option: str, path: Path, *suffixes: str) -> None:
    """Before a long work: whether the file that `option` names can be written at its end. suffixes: those it may have; none: any.

    Raises UsageError (another kind of file) and InputError (no place for it).
    """
    if suffixes:
        check_suffix(option, path, *suffixes)
    if path.is_dir():
        raise InputError(f"{option} {path}: is a folder", "name a file in it")
    try:
        check_place(path)
    except InputError as error:
        raise InputError(f"{option} {error.message}", error.hint) from error


def is_foreign(place: Path, *marks: str) -> bool:
    """Whether something lies there that we did not make: a file, or a folder with anything in it and none of our marks, which are
    patterns of names."""
    if not place.is_dir():
        return place.exists()
    return any(place.iterdir()) and not any(found for mark in marks for found in place.glob(mark))


def cache_folder() -> Path:
    """Where things that can be made again are kept: `$DTKD_EDGE_CACHE`, or `~/.cache/dtkd-edge`."""
    return Path(os.environ.get("DTKD_EDGE_CACHE") or Path.home() / ".cache" / "dtkd-edge")


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
