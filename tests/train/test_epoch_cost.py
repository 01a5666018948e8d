"""What an epoch costs, measured on a small recipe as its user types it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dtkd_edge.train import epoch_cost


def test_epochs_are_measured_in_turns(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "epochs.json"
    sets = [part for override in [*small, "data.cache_mb=0"] for part in ("--set", override)]
    monkeypatch.setattr(sys, "argv", ["epoch_cost", "quickstart", *sets, "--turns", "2", "--json", str(file), "--cpu-time"])
    monkeypatch.chdir(tmp_path)
    epoch_cost.main()
    shown = capsys.readouterr().out
    assert "3 steps of 16 clips" in shown and "alone / memory" in shown and "cached / alone" in shown
    told = json.loads(file.read_text())
    assert [len(values) for values in told["seconds"].values()] == [2, 2, 2]
    assert min(value for values in told["seconds"].values() for value in values) > 0
    assert set(told["ratios"]) == {"alone / memory", "cached / alone"}
    assert [path.name for path in tmp_path.iterdir()] == ["epochs.json"]  # what the teachers said is not left behind
