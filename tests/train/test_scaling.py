"""How training scales, measured as its user types it: processes that really run side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from train_cases import with_sets

from dtkd_edge.errors import NotHereError
from dtkd_edge.exits import reported
from dtkd_edge.train import scaling


@pytest.mark.slow
def test_processes_apart_and_together_are_measured_beside_one(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scaling.json"
    arguments = ["quickstart", *with_sets([*small, "device=cpu"]), "--turns", "1", "--seconds", "0.5", "--json", str(file)]
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


@pytest.mark.parametrize("together", [False, True])
def test_a_process_that_fails_ends_the_measurement(together: bool, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the one that waits for it ends too, or this would not come back; nor would it with a pipe that nobody empties."""
    monkeypatch.setenv("PYTHONVERBOSE", "1")
    failing = with_sets([*small, "student.model=no_such_network"])
    with pytest.raises(NotHereError, match=r"ended with an error: .*no_such_network"):
        scaling.run(["quickstart", *failing], 0.5, 2, together, [])


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [(["--set", "student.model=no_such_network"], 3, "no_such_network"), (["--processes", "1"], 2, "--processes")],
)
def test_what_cannot_be_measured_is_said_before_it_begins(
    arguments: list[str], code: int, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling", *arguments])
    with pytest.raises(SystemExit) as ended:
        reported(scaling.main)
    assert ended.value.code == code and named in capsys.readouterr().err
