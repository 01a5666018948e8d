"""`bench --host`: the same bench on a far machine, where dtkd-edge is installed, with its rows brought back.

Files go there once, by their sha256. The far bench runs on its own, so a dropped connection does not end it: the same command
finds it again; where it was killed, its rows come back all the same. TensorRT engines are built there, once, from the
engine-ready artefact. Nothing there needs more rights than the user has, and nothing that comes back is run.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dtkd_edge import __version__
from dtkd_edge.artifact import MANIFEST, Artifact
from dtkd_edge.benchmarks.record import Record, identity, parse_records
from dtkd_edge.benchmarks.rows import Options, asked_of, title
from dtkd_edge.benchmarks.scenarios import Scenario
from dtkd_edge.benchmarks.ssh import Ssh, plain
from dtkd_edge.console import say
from dtkd_edge.errors import DtkdEdgeError, InputError, MissingDependency, MissingDevice

FILES = ".cache/dtkd-edge/bench/files"
JOBS = ".cache/dtkd-edge/bench/jobs"
ENGINES = ".cache/dtkd-edge/bench/engines"
POLL_S = 1.0
LOGS = ("log", "build.log")
SIGNALS = 128  # the shell's exit code of a program that signal N ended is 128 + N

# Where a user's dtkd-edge is found without a login shell.
_FIND = """for p in "$(command -v dtkd-edge)" "$HOME/.local/bin/dtkd-edge" "$HOME/.venv/bin/dtkd-edge" \
"$HOME/dtkd-edge/.venv/bin/dtkd-edge"; do if [ -x "$p" ]; then echo "$p"; exec "$p" --version; fi; done; exit 127"""
_TOOLS = '"$1" bench --tool-versions 2>/dev/null'
_DOCTOR = '"$1" doctor 2>&1'
# $1 job, then sha256 name sha256 name …: the artefact folder made of links
_PREPARE = """cd || exit 1; umask 077; j=$1; shift; mkdir -p "$j" || exit 1
while [ $# -ge 3 ]; do mkdir -p "$j/$1" && ln -f "$2" "$j/$1/$3" 2>/dev/null || cp "$2" "$j/$1/$3" || exit 1; shift 3; done"""
# the same for $1 engine folder, which stays: once it is whole (its manifest comes last), nothing is written into it
_PREPARE_ENGINE = f"""if [ -f "$HOME/$1/$2/{MANIFEST}" ]; then exit 0; fi
{_PREPARE}"""
# What runs there. $1 program, $2 how many engine folders follow, then the arguments of the bench. An engine that does not load or
# verify on this GPU with this TensorRT is built; one that cannot be built is a row that says so. Its log lies beside the
# folder if it could not, within if it could.
_JOB = """p=$1; n=$2; shift 2; while [ "$n" -gt 0 ]; do n=$((n - 1)); if ! "$p" export "$1" --verify-only > check 2>&1; then
"$p" export "$1" --target tensorrt; b="$1.build.log"; [ -f "$b" ] || b="$1/build.log"
if [ -f "$b" ]; then echo "== $1" >> build.log; cat "$b" >> build.log; fi; fi; shift; done; "$p" bench "$@" """
# The job's process is the one that runs in the job's folder: after a restart its number may be another's, and a dead one that
# nobody asks after (PID 1 of many a container never does) keeps its number.
_ALIVE = """alive() { [ "$(readlink "/proc/$1/cwd" 2>/dev/null)" = "$(pwd -P)" ]; }"""
# $1 job, then the words of _JOB; starts it unless it runs, or ended within the hour (its rows wait to be fetched). One that was
# killed goes on with the rows that are missing, within a day.
_START = f"""{_ALIVE}; cd || exit 1; cd "$1" || exit 1; shift
if [ -f rc ] && [ -n "$(find rc -mmin +60)" ]; then rm -f rc pid out log build.log rows.jsonl; fi
if [ -f rc ]; then exit 0; fi
if [ -f pid ] && alive "$(cat pid)"; then exit 0; fi
if [ -f rows.jsonl ] && [ -n "$(find rows.jsonl -mmin +1440)" ]; then rm -f log build.log rows.jsonl; fi
if [ -f rows.jsonl ]; then echo on; fi
setsid sh -c '({_JOB}) > out 2>> log < /dev/null; echo $? > rc.new; mv rc.new rc' sh "$@" > /dev/null 2>&1 < /dev/null &
echo $! > pid"""
# $1 job, $2 bytes of the log that were seen
_POLL = f"""{_ALIVE}; cd || exit 1; cd "$1" || exit 3; if [ -f rc ]; then cat rc; elif alive "$(cat pid)"; then echo run; else
sleep 1; if [ -f rc ]; then cat rc; else echo gone; fi; fi; tail -c "+$2" log 2>/dev/null; exit 0"""
_ROWS = 'cd || exit 1; cat "$1/rows.jsonl" 2>/dev/null; exit 0'
_LOG = 'cd || exit 1; tail -c 16000000 "$1/$2" 2>/dev/null; exit 0'
# `kill -TERM -- -N` is no number to dash, the `sh` of Debian, Ubuntu and JetPack; `kill -s` is POSIX's
_STOP = """cd || exit 1; cd "$1" || exit 0; if [ -f pid ] && [ ! -f rc ]; then g="-$(cat pid)"; kill -s TERM -- "$g" 2>/dev/null
for i in 1 2 3 4 5 6; do kill -s 0 -- "$g" 2>/dev/null || exit 0; sleep 0.5; done; kill -s KILL -- "$g" 2>/dev/null; fi; exit 0"""
_CLEAN = 'cd || exit 1; case $1 in .cache/dtkd-edge/bench/jobs/*) rm -rf -- "$1";; esac'


def bench_on(
    host: str,
    artifacts: Sequence[Artifact],
    devices: Sequence[str],
    scenarios: Sequence[Scenario],
    options: Options,
    emit: Callable[[list[Record]], None],
    *,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    finished: Mapping[str | None, Record] | None = None,
    keep_log: Callable[[str, str, str], None] = lambda host, name, text: None,
    poll: float = POLL_S,
) -> None:
    """Measure on `host` and `emit` its rows. data and overrides name labelled videos on the far machine.

    finished: rows by identity, emitted as they are; an artefact is measured again with the scenarios that any of them lacks.
    keep_log: gets the host, `log` (what the bench said) or `build.log` (of engines that were built), and the text.

    Raises MissingDevice (no connection, no such device there), MissingDependency (no dtkd-edge there), the far bench's error.
    """
    with Ssh(host) as ssh:
        program = _find(ssh)
        if finished and any(r.device.host == host for r in finished.values()):
            tools = _tools(ssh, program)
            ids = {
                (a.folder, s.name): [identity(title(a), asked_of(a, d, options, s), host, s.name, tools) for d in devices]
                for a in artifacts
                for s in scenarios
            }
            lacking = {pair for pair, wanted in ids.items() if not all(i in finished for i in wanted)}
            artifacts = [a for a in artifacts if any(a.folder == folder for folder, _ in lacking)]
            scenarios = [s for s in scenarios if any(s.name == name for _, name in lacking)]
            again = {(a.folder, s.name) for a in artifacts for s in scenarios}
            emit([finished[i] for pair, wanted in ids.items() if pair not in again for i in wanted])
            if not artifacts:
                return
        words = _arguments(devices, scenarios, options, data, overrides)
        job = f"{JOBS}/{_job_name(artifacts, words)}"
        places = _copy(ssh, artifacts, job)
        engines = [folder for folder in places if folder.startswith("..")]

        def fetch() -> list[Record]:
            for name in LOGS:
                text = plain(ssh.run(job, name, script=_LOG).stdout.decode(errors="replace"))
                if text.strip():
                    keep_log(host, name, text)
            rows = _bring(ssh, job, host, places, options, emit)
            ssh.run(job, script=_CLEAN)
            return rows

        try:
            call = [program, str(len(engines)), *engines, *places, *words, "--json", "rows.jsonl"]
            started = ssh.run(job, *call, script=_START)
            if started.returncode:
                raise MissingDevice(f"{host}: the bench did not start: {plain(started.stderr.decode(errors='replace')).strip()}")
            if started.stdout.strip() == b"on" and not options.fresh:
                say(f"{host}: the bench there was interrupted before; its finished rows are not measured again")
            code, log = _follow(ssh, job, poll)
            if code is None:
                ssh.run(job, script=_STOP)  # what its end has left running
        except KeyboardInterrupt:
            say(f"stopping the bench on {host}")
            ssh.run(job, script=_STOP)
            fetch()
            raise
        rows, wanted_rows = fetch(), len(artifacts) * len(devices) * len(scenarios)
        if code is None or SIGNALS < code <= SIGNALS + 64:
            how = "ended without a word" if code is None else f"was ended by signal {code - SIGNALS}"
            raise MissingDevice(
                f"{host}: the bench there {how}; {len(rows)} of {wanted_rows} rows were finished and came back",
                "was it killed? is its memory full? the same command with --resume measures only what is missing",
            )
        if code != 0 and not (len(rows) >= wanted_rows and code in (3, 4)):  # all of its rows: each says why it is not ok
            raise _error(host, code, log)


def _find(ssh: Ssh) -> str:
    found = ssh.run(script=_FIND)
    lines = plain(found.stdout.decode(errors="replace")).splitlines()
    if found.returncode or len(lines) < 2:
        raise MissingDependency(
            f"{ssh.host}: dtkd-edge is not installed there, or not on its PATH",
            f'install it there: ssh {ssh.host} python3 -m pip install --user "dtkd-edge"',
        )
    version = lines[-1].removeprefix("dtkd-edge ").strip()
    if version != __version__:
        say(f"{ssh.host}: dtkd-edge {version} there, {__version__} here")
    doctor = ssh.run(lines[0], script=_DOCTOR)
    for line in plain(doctor.stdout.decode(errors="replace")).splitlines():
        say(f"{ssh.host}: {line}")
    if doctor.returncode:  # not refused: what it misses may be nothing that this bench needs
        say(f"{ssh.host}: doctor found something there that does not work (exit code {doctor.returncode}); trying all the same")
    return lines[0]


def _tools(ssh: Ssh, program: str) -> dict[str, str]:
    """Versions there, as its rows have them; none from a dtkd-edge that does not say."""
    answer = ssh.run(program, script=_TOOLS)
    try:
        found = json.loads(answer.stdout)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _arguments(
    devices: Sequence[str], scenarios: Sequence[Scenario], options: Options, data: Path | None, overrides: Sequence[str]
) -> list[str]:
    budget = options.budget
    words = ["--device", ",".join(devices)]
    for scenario in scenarios:
        words += ["--scenario", scenario.name]
    words += ["--min-queries", str(budget.queries), "--min-seconds", str(budget.seconds), "--max-seconds", str(budget.limit)]
    words += ["--warmup", str(budget.warmup), "--camera-fps", str(options.camera_fps)]
    words += ["--include", ",".join(options.include)] if options.include else []
    words += ["--threads", str(options.threads)] if options.threads else []
    words += ["--roofline"] if options.roofline else []
    words += ["--again" if options.fresh else "--resume"]  # of the job's own rows, if it was killed there
    for override in overrides:
        words += ["--set", override]
    if data is not None:
        words += ["--data", str(data)]
    return [*words, "--clips", str(options.clips)] if options.clips is not None else words


def _job_name(artifacts: Sequence[Artifact], words: Sequence[str]) -> str:
    """The same bench has the same name, so that the command finds its job again after a lost connection."""
    parts = [[a.folder.name, a.manifest.to_json()] for a in artifacts]
    return hashlib.sha256(json.dumps([parts, list(words)], sort_keys=True).encode()).hexdigest()[:16]


def _copy(ssh: Ssh, artifacts: Sequence[Artifact], job: str) -> dict[str, Artifact]:
    """Bring the artefacts there → their folders, as the far bench names them from within its job. Engines have a lasting one."""
    places: dict[str, Artifact] = {}
    prepare: list[tuple[str, str, list[str]]] = []
    sent = total = 0
    for number, artifact in enumerate(artifacts):
        folder = f"{number}-{artifact.folder.resolve().name}"
        links: list[str] = []
        if artifact.manifest.target == "tensorrt":
            folder = artifact.folder.resolve().name
            base = f"{ENGINES}/{artifact.manifest.sha256[:16]}"
            places[f"../../engines/{artifact.manifest.sha256[:16]}/{folder}"] = artifact
            prepare.append((_PREPARE_ENGINE, base, links))
        else:
            places[folder] = artifact
            prepare.append((_PREPARE, job, links))
        files = dict(artifact.manifest.files)
        manifest = artifact.folder / MANIFEST
        files[MANIFEST] = hashlib.sha256(manifest.read_bytes()).hexdigest()
        for name, digest in files.items():
            total += 1
            sent += ssh.send(artifact.folder / name, FILES, digest)
            links += [folder, f"{FILES}/{digest}", name]
    for script, base, links in [(_PREPARE, job, []), *prepare]:
        prepared = ssh.run(base, *links, script=script)
        if prepared.returncode:
            raise MissingDevice(f"{ssh.host}: {plain(prepared.stderr.decode(errors='replace')).strip()}", "is its disk full?")
    say(f"{ssh.host}: {sent} of {total} files copied, the rest was there")
    return places


def _follow(ssh: Ssh, job: str, poll: float) -> tuple[int | None, str]:
    """Wait for the far bench and show its messages: (exit code, log). No exit code: it is gone without one."""
    log = b""
    while True:
        answer = ssh.run(job, str(len(log) + 1), script=_POLL)
        state, _, more = answer.stdout.partition(b"\n")
        for line in plain(more.decode(errors="replace")).splitlines():
            say(f"{ssh.host}: {line}")
        log += more
        text = state.decode(errors="replace").strip()
        if text.isdigit():
            return int(text), plain(log.decode(errors="replace"))
        if text != "run":
            return None, plain(log.decode(errors="replace"))
        time.sleep(poll)


def _bring(
    ssh: Ssh, job: str, host: str, places: Mapping[str, Artifact], options: Options, emit: Callable[[list[Record]], None]
) -> list[Record]:
    text = ssh.run(job, script=_ROWS).stdout.decode(errors="replace")
    if not text.strip():
        return []
    try:
        rows = parse_records(text, f"{host}: rows.jsonl")
    except InputError as error:
        raise MissingDevice(f"{error.message}", "the same version of dtkd-edge must run on both sides") from error
    back = [_relabel(r, host, places.get(r.path), options.command) for r in rows]
    emit(back)
    return back


def _relabel(record: Record, host: str, own: Artifact | None, command: str) -> Record:
    """The row with this side's command and artefact, and the host beside the device. An engine that was built there answers for
    the artefact that was asked for; the row's `files` are the built ones."""
    device = record.device.model_copy(update={"host": host})
    update: dict[str, object] = {"device": device, "command": command, "path": ""}
    if own is not None:
        update |= {"artifact": title(own), "path": str(own.folder)}
        if record.asked is not None:
            update["asked"] = record.asked.model_copy(update={"manifest": own.manifest.sha256})
    return record.model_copy(update=update)


def _error(host: str, code: int, log: str) -> DtkdEdgeError:
    lines = log.strip().splitlines()
    said = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")
    hint = next((line.strip().removeprefix("fix: ") for line in reversed(lines) if line.strip().startswith("fix: ")), "")
    kinds = {2: InputError, 3: InputError, 4: MissingDevice}
    return kinds.get(code, DtkdEdgeError)(f"{host}: {said or f'the bench there failed with exit code {code}'}", hint)
