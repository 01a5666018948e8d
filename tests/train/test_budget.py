"""What a training would take: the arithmetic against a count of single steps, and the two commands one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtkd_edge.errors import UsageError
from dtkd_edge.train import step_cost
from dtkd_edge.train.budget import Cost, budget, main, read_cost, size

COST = Cost(batch=4, student=0.5, teachers=2.0, step=2.75, cached=0.75, clip=1000, stored=300)


@given(
    epochs=st.integers(1, 12),
    batches=st.integers(1, 20),
    views=st.one_of(st.none(), st.integers(1, 15)),
    devices=st.integers(1, 64),
)
def test_the_hours_are_those_of_every_step_counted(epochs: int, batches: int, views: int | None, devices: int) -> None:
    seconds, kept = 0.0, set()
    for epoch in range(epochs):
        for batch in range(batches):
            if views is None:
                seconds += COST.step
                continue
            if (epoch % views, batch) not in kept:
                seconds += COST.teachers
                kept.add((epoch % views, batch))
            seconds += COST.cached
    found = budget(COST, clips=4 * batches, epochs=epochs, views=views, devices=devices)
    assert found.device_hours == pytest.approx(seconds / 3600)
    assert found.hours * devices == pytest.approx(found.device_hours)
    assert found.cache == len(kept) * COST.batch * COST.stored
    assert found.to_devices == pytest.approx(found.clips_per_second * COST.clip)


def test_a_step_is_measured_and_made_into_a_table(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cost.json"
    sets = [part for override in small for part in ("--set", override)]
    monkeypatch.setattr(sys, "argv", ["step_cost", "quickstart", *sets, "--steps", "1", "--json", str(file), "--cpu-time"])
    step_cost.main()
    assert "cached / student" in capsys.readouterr().out
    cost, where = read_cost(file)
    assert min(cost.student, cost.teachers, cost.step, cost.cached) > 0 and "1 CPU thread" in where
    told = json.loads(file.read_text())
    assert told["clip"] == cost.clip and cost.clip % 3 == 0
    arguments = ["budget", str(file), "--clips", "1000", "--epochs", "10", "--devices", "1,8", "--decode-ms", "20"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    shown = capsys.readouterr()
    assert "1,000 clips, 10 epochs" in shown.out and shown.out.count("every step") == 2 and "measured: quickstart" in shown.err


@pytest.mark.parametrize(("arguments", "code"), [(["none.json"], 2), (["none.json", "--devices", "1,0"], 2)])
def test_the_command_says_what_is_wrong(arguments: list[str], code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dtkd_edge.train.budget", *arguments, "--clips", "9", "--epochs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code and "error: " in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_is_not_from_step_cost_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    for text in (None, "{", "[]", '{"batch": 1}'):
        if text is not None:
            other.write_text(text)
        with pytest.raises(UsageError, match="no figures of a step"):
            read_cost(other)


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (1.28e6, "1.28 MB"), (2.5e12, "2.5 TB"), (0, "0 B")])
def test_sizes_are_in_decimal_units(count: float, text: str) -> None:
    assert size(count) == text
