"""Out of memory, with an allocator that really fails: the process may not have more address space."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtkd_edge.errors import NotHereError
from dtkd_edge.train.memory import PROBES, InParts, is_out_of_memory, largest_that_fits, too_large

LIMITED = """
import ctypes, resource, sys
import torch
from dtkd_edge.errors import DtkdEdgeError
from dtkd_edge.train import loop
from dtkd_edge.train.command import train

torch.backends.mkldnn.enabled = False  # whose own allocations fail as "could not create a primitive"
room, filled = {room} * 2**20, []
def limit():
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed and kept is room as well
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + room, resource.RLIM_INFINITY))

def fill():  # what the process has freed and kept: no block of it is left that holds more than room
    limit()
    try:
        while True:
            filled.append(torch.empty(2**20, dtype=torch.uint8))
    except RuntimeError:
        del filled[-room // 2**20:]
{where}
try:
    train("quickstart", overrides=sys.argv[1:])
except DtkdEdgeError as error:
    print(error.exit_code, error.message, error.hint, sep="\\n")
"""


KEPT = """
import resource
import torch
from dtkd_edge.train.engine import Engine
from dtkd_edge.train.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(40 * 2**20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
first = faults()
Engine("cpu")
faults()
print(first, faults(), keep_freed_memory())
"""

STEP = """
inner = loop.forward_backward
def limited(phase, inputs, more):
    if len(inputs.frames) == 48:
        limit()
    return inner(phase, inputs, more)
loop.forward_backward = limited
"""
UPDATE = """
inner = loop.update
def limited(phase, optimizer, step):
    fill()
    return inner(phase, optimizer, step)
loop.update = limited
"""
EVALUATION = """
from dtkd_edge.train import memory
inner, asked = memory.InParts.__call__, []
def limited(parts, frames):
    limit()
    result = inner(parts, frames)
    asked.append((parts.what, len(frames), parts.size))
    print("parts", *asked[-1], sep=",")
    return result
memory.InParts.__call__ = limited
"""


def test_a_training_keeps_the_memory_that_it_frees() -> None:
    """10,240 pages each time else, or 20 where the kernel gives huge ones."""
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    first, kept, told = done.stdout.split()
    if told == "False":
        pytest.skip("this C library has no mallopt")
    assert int(first) >= 100 and int(kept) < 10, done.stdout


def run_limited(where: str, room: int, overrides: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """A training that may take so many MiB more from a certain place on."""
    command = [sys.executable, "-c", LIMITED.replace("{room}", str(room)).replace("{where}", where), *overrides, "threads=1"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_a_training_that_runs_out_of_memory_names_the_batch_that_fits(small: list[str], tmp_path: Path) -> None:
    larger = ["train.batch_size=48", "student.size=48", "student.options={width: 48}"]
    done = run_limited(STEP, 150, [*small, *larger, "distill.method=ce"], tmp_path)
    code, message, hint = done.stdout.splitlines()[-3:]
    assert code == "4" and message == "train: not enough memory for a step of 48 clips", done.stderr
    size = int(hint.split()[0])
    assert 2 <= size < 48
    assert f"--set train.batch_size={size} --set train.accumulate={-(-48 // size)} " in hint


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_an_optimizer_without_room_for_its_state_is_named(small: list[str], tmp_path: Path) -> None:
    wide = ["student.options={width: 400}", "train.batch_size=2", "train.clip_grad=0", "distill.method=ce"]
    done = run_limited(UPDATE, 20, [*small, *wide], tmp_path)
    code, message, hint = done.stdout.splitlines()[-3:]
    assert code == "4" and message.startswith("train: a step of adamw: not enough memory: "), done.stderr
    assert "train.optimizer=sgd" in hint


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_evaluation_and_the_teachers_outputs_take_the_memory_that_there_is(small: list[str], tmp_path: Path) -> None:
    large = ["teachers.cnn.size=64", "teachers.cnn.options={width: 48}", "teachers.vit=null", "distill.method=kd-cnn"]
    large += ["teachers.cnn.train.epochs=1", "teachers.cnn.train.batch_size=2", "train.epochs=1", "teachers.views=1"]
    done = run_limited(EVALUATION, 160, [*small, *large], tmp_path)
    assert done.returncode == 0, done.stderr
    parts = [line.split(",")[1:] for line in done.stdout.splitlines() if line.startswith("parts,")]
    smaller = {what for what, given, size in parts if size != "None" and int(size) < int(given)}
    assert smaller == {"evaluation", "teachers.views: the outputs of cnn"}, parts


def test_parts_are_joined_in_their_order_and_too_little_for_one_is_said() -> None:
    room = 5

    def call(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(frames) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"a": 2 * frames, "b": frames[:, :1]}

    run, frames = InParts(call, "evaluation"), torch.arange(26.0).view(13, 2)
    for _ in range(2):
        result = run(frames)
        assert torch.equal(result["a"], 2 * frames) and torch.equal(result["b"], frames[:, :1])
        assert run.size == 3
    room = 0
    with pytest.raises(NotHereError, match="evaluation: not enough memory for a single clip"):
        run(frames)
    with pytest.raises(RuntimeError, match="other"):
        InParts(lambda frames: exec("raise RuntimeError('other')"), "x")(frames)  # type: ignore[func-returns-value]


@given(batch=st.integers(2, 3000), room=st.integers(0, 3000))
def test_the_largest_batch_found_fits_and_is_near_the_largest(batch: int, room: int) -> None:
    asked: list[int] = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= room

    room = min(room, batch - 1)
    found = largest_that_fits(batch, fits)
    assert len(asked) == len(set(asked)) <= math.log2(batch) + PROBES
    if found is None:
        assert room < 2
    else:
        assert found in asked and found <= room <= found * (1 + 2.0 ** (1 - PROBES)) + 1


def test_the_batch_is_halved_until_it_fits_and_then_raised() -> None:
    asked: list[int] = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= 6

    error = too_large("teachers.vit.train", 50, 2, fits)
    assert asked == [25, 12, 6, 9, 7]
    assert "6 clips fit: --set teachers.vit.train.batch_size=6 --set teachers.vit.train.accumulate=17 " in error.hint
    assert "lower train.batch_size" in too_large("train", 64, 1, lambda count: False).hint
    assert "lower train.batch_size" in too_large("train", 64, 1, None).hint


def test_what_counts_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**14)
    assert is_out_of_memory(caught.value) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shape '[3]' is invalid")) and not is_out_of_memory(MemoryError())
