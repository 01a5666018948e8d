"""A training killed again and again at work ends in the same bits; two never write into one run."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from train_cases import command, with_sets

from dtkd_edge.errors import UsageError
from dtkd_edge.files import sole_writer
from dtkd_edge.train.command import train

# More short epochs than ten kills can see, all that a checkpoint has to hold, and stored teacher outputs.
MANY = [
    "data.student_clips=32",
    "augment.color=0.3",
    "teachers.cnn.train.epochs=4",
    "teachers.vit.train.epochs=4",
    "teachers.cnn.train.eval_every=4",
    "teachers.vit.train.eval_every=4",
    "teachers.vit.train.ema=0.9",
    "student.options={width: 8, dropout: 0.2}",
    "train.epochs=24",
    "train.eval_every=24",
    "train.ema=0.9",
]


def epochs(run: Path) -> list[tuple[str, int]]:
    """(phase, epoch) of every whole line of the log; the last one may be being written."""
    log = run / "log.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.is_file() else []
    return [(entry["phase"], entry["epoch"]) for entry in map(json.loads, lines) if "epoch" in entry]


KILL_TEN_TIMES = """
import json, os, pathlib, random, signal, sys, time
# What takes seconds to import, once: every process that is forked from here is soon at work.
import dtkd_edge.train.command, timm.utils, torch._dynamo, torch.utils.tensorboard
from dtkd_edge.cli import main

def start():
    process = os.fork()
    if process == 0:
        sys.argv[0] = "dtkd-edge"
        main()
        os._exit(0)
    return process

def epochs():
    log = pathlib.Path(sys.argv[-2], "log.jsonl")
    lines = log.read_text().split("\\n")[:-1] if log.is_file() else []
    return {(e["phase"], e["epoch"]): e["seconds"] for e in map(json.loads, lines) if "epoch" in e}

moments, known = random.Random(0), set()
for _ in range(10):
    process, deadline = start(), time.monotonic() + 240
    while not epochs().keys() - known and time.monotonic() < deadline:
        time.sleep(0.005)
    # Somewhere in the next epoch, or in what follows the last one of a phase.
    time.sleep(moments.uniform(0, min(0.35, *epochs().values(), 0.35)))
    assert os.waitpid(process, os.WNOHANG)[0] == 0, "it ended before it could be killed"
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    known |= epochs().keys()
    print("killed in", list(epochs())[-1][0])
print("then", os.waitstatus_to_exitcode(os.waitpid(start(), 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_ten_times_at_work_it_ends_byte_for_byte_as_the_run_that_was_not(small: list[str], tmp_path: Path) -> None:
    overrides = [*small, *MANY, "teachers.views=2"]
    whole, run = train("quickstart", overrides=overrides, out=tmp_path / "whole"), tmp_path / "run"
    arguments = ["train", *with_sets(overrides), "--out", str(run), "--resume"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILL_TEN_TIMES, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert killed.returncode == 0, killed.stderr
    phases = [line.split()[-1] for line in killed.stdout.splitlines() if line.startswith("killed in")]
    assert len(phases) == 10 and phases[0] != "student" and "student" in phases
    assert killed.stdout.splitlines()[-1] == "then 0", killed.stderr
    for name in ("student", "teachers/cnn", "teachers/vit"):
        assert (run / f"{name}.safetensors").read_bytes() == (whole / f"{name}.safetensors").read_bytes(), name
    assert epochs(run) == epochs(whole)
    assert not list(run.rglob("*.previous"))


def test_a_second_training_does_not_write_into_the_same_run(
    small: list[str], tmp_path: Path, main: Callable[..., tuple[int, str, str]]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    overrides = [*small, "distill.method=ce", "train.epochs=1"]
    with sole_writer(run):
        code, _, said = main("train", *with_sets(overrides), "--out", run, "--resume")
        assert code == 2 and said.count("error:") == 1
        assert f"error: {run}: process " in said and "  fix: wait for it or end it" in said
        with pytest.raises(UsageError, match=f"{run}: process .* writes here"), sole_writer(run):
            pass
    assert [file.name for file in run.iterdir()] == [".lock"]
    train("quickstart", overrides=overrides, out=run, resume=True)  # the lock went with its holder
    with sole_writer(run):
        train("quickstart", overrides=overrides, out=run, resume=True)  # finished: nothing to write


def wait_for_a_new_epoch(run: Path, process: subprocess.Popen[bytes], known: set[tuple[str, int]]) -> None:
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline and not set(epochs(run)) - known:
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def runs(pid: int) -> bool:
    """Whether there is such a process, and not only what nobody has asked for of a dead one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def on_a_terminal(arguments: list[str], cwd: Path) -> tuple[int, str]:
    """Exit code of a command whose standard error is a terminal, and what it wrote there."""
    master, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": "160", "TERM": "xterm"}
    with subprocess.Popen(arguments, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=terminal) as process:
        os.close(terminal)
        said = b""
        with suppress(OSError):  # Linux says so at the end
            while block := os.read(master, 1 << 16):
                said += block
    os.close(master)
    return process.returncode, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode("utf-8", "replace"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds child processes as Linux shows them")
def test_an_interrupted_comparison_leaves_no_training_behind_and_goes_on(small: list[str], tmp_path: Path) -> None:
    overrides = [*small, *MANY, "train.epochs=60"]
    ways = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}
    arguments = command("compare", *with_sets(overrides), "--methods", "ce", "--seeds", "1", "--out")
    run = tmp_path / "out" / "seed-0" / "ce"
    known: set[tuple[str, int]] = set()
    for way, code in ways.items():
        with subprocess.Popen([*arguments, "out"], cwd=tmp_path, stderr=subprocess.PIPE) as process:
            wait_for_a_new_epoch(run, process, known)
            (child,) = children_of(process.pid)
            process.send_signal(way)
            _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert (b"the same command goes on" in said) == (way != signal.SIGKILL) and b"Traceback" not in said
        deadline = time.monotonic() + 60
        while runs(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not runs(child)
        known |= set(epochs(run))
    assert not (run / "metrics.json").exists()
    code, said = on_a_terminal([*arguments, "out"], tmp_path)
    assert code == 0, said
    assert re.search(r"trainings .* 0/1 +seed 0: ce, epoch \d+ of 60; about \d+ s left", said)
    assert re.search(r"seed 0: ce is done, top-1 0\.\d+ \(1 of 1 done", said)
    whole = train("quickstart", overrides=[*overrides, "distill.method=ce"], out=tmp_path / "whole")
    assert (run / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
