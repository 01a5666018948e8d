"""How training scales, measured as its user types it: processes that really run side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from train_cases import with_sets

from dtkd_edge.errors import NotHereError
from dtkd_edge.train import scaling


@pytest.mark.slow
def test_processes_apart_and_together_are_measured_beside_one(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scaling.json"
    arguments = ["quickstart", *with_sets(small), "--turns", "1", "--seconds", "0.5", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["scaling", *arguments])
    monkeypatch.chdir(tmp_path)
    scaling.main()
    shown = capsys.readouterr().out
    assert "batches of 16 a process, 2 processes" in shown and "together / apart" in shown
    told = json.loads(file.read_text())
    speeds = {name: values[0] for name, values in told["clips_per_second"].items()}
    assert set(speeds) == {"one", "apart", "together"} and min(speeds.values()) > 0
    for name, (least, median, most) in told["ratios"].items():
        above, below = name.split(" / ")
        assert least == median == most == speeds[above] / speeds[below]


def test_a_process_that_fails_ends_the_measurement(small: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """And the one that waits for it ends too, or this would not come back."""
    failing = with_sets([*small, "student.model=no_such_network"])
    with pytest.raises(NotHereError, match="ended with an error") as caught:
        scaling.run(["quickstart", *failing], 0.5, 2, together=False)
    assert caught.value.hint and "Traceback" not in caught.value.hint
