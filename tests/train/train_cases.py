"""A recipe that trains in seconds and the command line as a user runs it, for every test of this room."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# As small as a run can be that still has all its parts: both teachers, the branch, alignment and relations.
SMALL = [
    "data.clips=64",
    "data.val_clips=32",
    "data.frame_size=32",
    "data.student_clips=48",
    "student.size=24",
    "teachers.cnn.size=24",
    "teachers.vit.size=24",
    "teachers.cnn.options={width: 8}",
    "teachers.vit.options={dim: 24, depth: 1, num_heads: 2}",
    "teachers.cnn.train.epochs=2",
    "teachers.vit.train.epochs=2",
    "train.epochs=3",
    "train.batch_size=16",
    "train.eval_every=1",
    "train.checkpoint_every=1",
    "threads=1",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dtkd_edge", *arguments]


def run_cli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line as a user runs it, from a folder of its own."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command(*arguments), cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False)


def with_sets(overrides: list[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]
