import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dtkd_edge.export.command import export
from dtkd_edge.export.measure import turns


class Scripted:
    """A runtime that takes its time from a list; `verify.one_call` needs nothing else of one."""

    def __init__(self, seen: list[str], name: str) -> None:
        self.seen, self.name = seen, name
        self.artifact = type("A", (), {"manifest": type("M", (), {"mode": "clip"})})

    def run(self, frames: np.ndarray) -> dict:
        self.seen.append(self.name)
        return {}


def test_everybody_has_as_many_turns_in_an_order_that_rotates() -> None:
    seen: list[str] = []
    ms = turns([Scripted(seen, name) for name in "abc"], np.zeros((1, 1, 1, 1, 3), np.uint8), 3)  # type: ignore[misc]
    blocks = ["".join(seen[i : i + 4]) for i in range(0, len(seen), 4)]
    assert all(len(set(block)) == 1 for block in blocks)
    assert ["".join(block[0] for block in blocks[i : i + 3]) for i in range(0, 12, 3)] == ["cab", "abc", "bca", "cab"]
    assert ms.shape == (3, 3) and (ms > 0).all()


@pytest.mark.slow
def test_a_causal_run_in_two_modes(causal: Path, tmp_path: Path) -> None:
    export(causal, target="openvino")  # is there already: not exported again
    shutil.rmtree(causal / "export" / "openvino-fp32-stream", ignore_errors=True)  # of another test
    command = [sys.executable, "-m", "dtkd_edge.export.measure", str(causal), "--precision", "fp32", "--mode", "clip,stream"]
    done = subprocess.run([*command, "--rounds", "3", "--json", "-"], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    base, stream = rows
    assert [row["artifact"] for row in rows] == ["openvino-fp32", "openvino-fp32-stream"]
    assert base["export_seconds"] is None and stream["export_seconds"] > 0 and stream["export_peak_mb"] > 50
    assert base["ratio"] == 1 and base["accuracy"] is None and stream["accuracy"]["clips"] == 6
    assert stream["ratio_to"] == "openvino-fp32"
    assert stream["accuracy"]["drop"] == 0  # the last frame's logits are the clip's
    for row in rows:
        assert row["ms_spread"][0] <= row["ms"] <= row["ms_spread"][1]
        assert f"{row['artifact']} " in done.stderr
