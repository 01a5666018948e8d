"""Out of memory, with an allocator that really fails: the process may not have more address space."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dtkd_edge.train.memory import is_out_of_memory, too_large

LIMITED = """
import resource, sys
import torch
from dtkd_edge.errors import DtkdEdgeError
from dtkd_edge.train import loop
from dtkd_edge.train.command import train

torch.backends.mkldnn.enabled = False  # whose own allocations fail as "could not create a primitive"
inner, room = loop.forward_backward, {room} * 2**20
def limited(phase, inputs, more):
    if len(inputs.frames) == 48:
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + room, resource.RLIM_INFINITY))
    return inner(phase, inputs, more)
loop.forward_backward = limited
try:
    train("quickstart", overrides=sys.argv[1:])
except DtkdEdgeError as error:
    print(error.exit_code, error.message, error.hint, sep="\\n")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_a_training_that_runs_out_of_memory_names_the_batch_that_fits(small: list[str], tmp_path: Path) -> None:
    larger = ["train.batch_size=48", "student.size=48", "student.options={width: 48}"]
    overrides = [*small, *larger, "distill.method=ce", "threads=1"]
    command = [sys.executable, "-c", LIMITED.replace("{room}", "150"), *overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    code, message, hint = done.stdout.splitlines()[-3:]
    assert code == "4" and message == "train: not enough memory for a step of 48 clips", done.stderr
    size = int(hint.split()[0])
    assert size in (3, 6, 12, 24)
    assert f"--set train.batch_size={size} --set train.accumulate={48 // size} " in hint


def test_the_batch_is_halved_until_it_fits() -> None:
    asked: list[int] = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= 6

    error = too_large("teachers.vit.train", 50, 2, fits)
    assert asked == [25, 12, 6]
    assert "6 clips fit: --set teachers.vit.train.batch_size=6 --set teachers.vit.train.accumulate=17 " in error.hint
    assert "lower train.batch_size" in too_large("train", 64, 1, lambda count: False).hint
    assert "lower train.batch_size" in too_large("train", 64, 1, None).hint


def test_what_counts_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**14)
    assert is_out_of_memory(caught.value) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shape '[3]' is invalid")) and not is_out_of_memory(MemoryError())
