"""Commands and files to a far machine over the system's OpenSSH: host keys checked, no question asked, lost connections retried.

Whatever comes back is data: it is parsed or shown without control characters, never run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from dtkd_edge.console import say
from dtkd_edge.errors import MissingDependency, MissingDevice, UsageError

CONFIG_VARIABLE = "DTKD_EDGE_SSH_CONFIG"  # another file than ~/.ssh/config, as in `ssh -F`
LOST = 255  # ssh's own exit code: no connection, or it broke
MOST_OUTPUT = 64 << 20
_HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_\[][A-Za-z0-9_.:\[\]-]*")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Far output without what could steer a terminal."""
    return _CONTROL.sub("", text)


class Ssh:
    """One far machine. Use as a context; the shared connection is closed at the end."""

    def __init__(self, host: str, *, tries: int = 5, pause: float = 2.0) -> None:
        if not _HOST.fullmatch(host):
            raise UsageError(f"--host {host}: not a host", "give user@address, or a name from ~/.ssh/config")
        program = shutil.which("ssh")
        if program is None:
            raise MissingDependency("ssh is not installed", "install OpenSSH's client: apt install openssh-client")
        self.host, self.tries, self.pause = host, tries, pause
        self._folder = tempfile.TemporaryDirectory(prefix="dtkd-ssh-")
        config = os.environ.get(CONFIG_VARIABLE)
        self._command = [program, *(["-F", config] if config else [])]
        for option in (
            "BatchMode=yes",  # never a password prompt
            "StrictHostKeyChecking=yes",
            "ConnectTimeout=10",
            "ServerAliveInterval=5",
            "ServerAliveCountMax=3",
            "ForwardAgent=no",
            "ForwardX11=no",
            "ControlMaster=auto",
            f"ControlPath={self._folder.name}/c",
            "ControlPersist=30",
        ):
            self._command += ["-o", option]

    def __enter__(self) -> Ssh:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            closing = [*self._command, "-O", "exit", "--", self.host]
            subprocess.run(closing, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self._folder.cleanup()

    def run(self, *words: str, script: str = "", timeout: float = 120) -> subprocess.CompletedProcess[bytes]:
        """Run a fixed `sh` script there with `words` as $1 …; retried when the connection is lost, so it must bear repetition.

        Raises MissingDevice when the host cannot be reached.
        """
        remote = f"sh -c {shlex.quote(script)} sh {shlex.join(words)}"
        for attempt in range(self.tries):
            done = self._once(remote, timeout)
            if done.returncode != LOST:
                if len(done.stdout) > MOST_OUTPUT:
                    raise MissingDevice(f"{self.host}: sent {len(done.stdout)} bytes", "is this the right machine?")
                return done
            self._check_refusal(done.stderr)
            if attempt + 1 < self.tries:
                say(f"{self.host}: no connection, trying again ({attempt + 1}/{self.tries - 1})")
                time.sleep(self.pause)
        raise MissingDevice(
            f"{self.host}: {_last(done.stderr) or 'no connection'}", "is it on, and its address right? try: ssh " + self.host
        )

    def _once(self, remote: str, timeout: float, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        command = [*self._command, "--", self.host, remote]
        try:
            if stdin is None:
                return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False)
            return subprocess.run(command, input=stdin, capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, LOST, b"", f"no answer within {timeout:g} s".encode())

    def _check_refusal(self, stderr: bytes) -> None:
        """What no retry mends."""
        text = stderr.decode(errors="replace")
        if "Host key verification failed" in text or "IDENTIFICATION HAS CHANGED" in text:
            raise MissingDevice(
                f"{self.host}: its host key is not known here, or not the known one",
                f"connect once by hand and compare the key: ssh {self.host}",
            )
        if "Permission denied" in text or "Too many authentication failures" in text:
            raise MissingDevice(f"{self.host}: it refuses the login", f"set up a key: ssh-copy-id {self.host}")
        if "Could not resolve hostname" in text:
            raise MissingDevice(f"{self.host}: no such host", "check the address")

    def send(self, file: Path, folder: str, name: str) -> bool:
        """Copy a file to ~/`folder`/`name`, whose content `name` is the sha256 of; False where it was there already.

        An interrupted copy goes on where it stopped; the far side's own sha256 decides whether it is right.
        """
        size = file.stat().st_size
        for attempt in range(self.tries):
            asked = self.run(folder, name, script=_STATE)
            state = asked.stdout.decode(errors="replace").split()
            if state[:1] == ["have"]:
                return attempt > 0
            start = int(state[1]) if len(state) == 2 and state[0] == "part" and state[1].isdigit() else 0
            if start > size:
                start = 0
            with file.open("rb") as stream:
                stream.seek(start)
                rest = stream.read()
            remote = f"sh -c {shlex.quote(_APPEND)} sh {shlex.join([folder, name, str(start)])}"
            done = self._once(remote, 120 + size / 1e5, stdin=rest)
            if done.returncode == 0:
                return True
            if done.returncode != LOST:
                raise MissingDevice(f"{self.host}: the copy of {file.name} failed: {_last(done.stderr)}", "is its disk full?")
            say(f"{self.host}: the connection broke while {file.name} was copied, going on")
            time.sleep(self.pause)
        raise MissingDevice(f"{self.host}: {file.name} could not be copied", "is the connection stable? run the command again")


# $1: folder below the home folder, $2: sha256, $3: bytes that are there already
_STATE = """cd || exit 1; umask 077; mkdir -p "$1" && cd "$1" || exit 1
if [ -f "$2" ]; then echo have; elif [ -f "$2.part" ]; then echo part "$(wc -c < "$2.part")"; else echo part 0; fi"""
_APPEND = """cd || exit 1; cd "$1" || exit 1
if [ "$3" = 0 ]; then : > "$2.part"; fi
cat >> "$2.part" || exit 1
set -- "$1" "$2" "$(sha256sum < "$2.part")"
if [ "${3%% *}" = "$2" ]; then mv "$2.part" "$2"; else rm -f "$2.part"; echo 'the copy has another sha256' >&2; exit 1; fi"""


def _last(stderr: bytes) -> str:
    lines = [line for line in plain(stderr.decode(errors="replace")).splitlines() if line.strip()]
    return lines[-1] if lines else ""
